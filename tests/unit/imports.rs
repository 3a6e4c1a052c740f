//! What each room imports: arrows between rooms point down, and no two files import each other.
//!
//! Read from the source as text: `use` declarations and paths that begin with `crate::`, up to a
//! file's tests. A name that a `mod.rs` re-exports counts as an import of the file that defines it,
//! and the re-export itself does not count.

use crate::tidy::{Source, sources};
use std::collections::{BTreeMap, BTreeSet};

/// The rooms of the library from the bottom up. A room imports from rooms in lines above its own;
/// rooms in one line know nothing of each other.
const ROOMS: &[&[&str]] = &[
    &["clock", "config_error", "pem", "plural", "retry_after", "tls_error"],
    &["disk_error", "env", "file_lock", "file_stamp", "regular_file"],
    &["proxy"],
    &["event"],
    &["telemetry"],
    &["request", "response"],
    &["spool", "policy", "upstream"],
    &["delivery"],
    &["explain"],
    &["plugin"],
    &["builder", "server"],
    &["admin", "reload"],
];

type Module = Vec<String>;

/// One leaf of a `use` declaration.
struct Import {
    path: Module,
    /// The name under which the file knows it; `*` for all names.
    name: String,
    is_public: bool,
}

struct File {
    source: Source,
    module: Module,
    imports: Vec<Import>,
    /// Paths that begin with `crate::`, outside of `use`.
    paths: Vec<Module>,
}

/// The files of one crate target, by the module that each is.
struct Target(BTreeMap<Module, File>);

impl Target {
    /// Reads the target whose root file is `root`, leaving out what lies below `except`.
    fn read(root: &str, except: &str) -> Target {
        let folder = root.rsplit_once('/').unwrap().0;
        let mut files = BTreeMap::new();
        for source in sources(&[folder]) {
            let path = source.path.to_str().unwrap().to_owned();
            if !except.is_empty() && path.starts_with(except) {
                continue;
            }
            let inner = path[folder.len() + 1..].trim_end_matches(".rs");
            let mut module: Module = inner.split('/').map(str::to_owned).collect();
            if path == root || module.last().unwrap() == "mod" {
                module.pop();
            }
            files.insert(module, source);
        }
        let modules: BTreeSet<Module> = files.keys().cloned().collect();
        let read = |(module, source): (Module, Source)| {
            let (imports, paths) = imports_of(&source.text, &module, &modules);
            (module.clone(), File { source, module, imports, paths })
        };
        Target(files.into_iter().map(read).collect())
    }

    /// The file that defines what a path names, re-exports followed.
    fn resolve(&self, path: &[String], depth: usize) -> Option<&File> {
        let length = (0..=path.len()).rev().find(|n| self.0.contains_key(&path[..*n]))?;
        let file = &self.0[&path[..length]];
        let Some(name) = path.get(length).filter(|_| depth > 0) else { return Some(file) };
        if let Some(import) = file.imports.iter().find(|import| import.name == *name) {
            return self.resolve(&import.path, depth - 1);
        }
        let globs = file.imports.iter().filter(|import| import.name == "*" && import.is_public);
        for glob in globs {
            let of = self.resolve(&glob.path, 0)?;
            if of.source.text.contains(&format!(" {name}")) && !defines(&file.source.text, name) {
                return Some(of);
            }
        }
        Some(file)
    }

    /// Every arrow from a file to another, with the name that makes it.
    fn arrows(&self) -> Vec<(&File, &File, String)> {
        let mut arrows = Vec::new();
        for file in self.0.values() {
            let imports = file.imports.iter().filter(|import| !import.is_public);
            for path in imports.map(|import| &import.path).chain(&file.paths) {
                let to = self.resolve(path, 8).filter(|to| to.module != file.module);
                arrows.extend(to.map(|to| (file, to, path.join("::"))));
            }
        }
        assert!(!arrows.is_empty());
        arrows
    }
}

fn defines(text: &str, name: &str) -> bool {
    let kinds = ["struct", "enum", "fn", "const", "type", "trait", "static", "mod"];
    kinds.iter().any(|kind| text.contains(&format!("{kind} {name}")))
}

/// A file's imports, and its other paths into the crate.
fn imports_of(text: &str, at: &Module, modules: &BTreeSet<Module>) -> (Vec<Import>, Vec<Module>) {
    // Tests stand last in a file and may import from anywhere.
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    let (mut imports, mut paths) = (Vec::new(), Vec::new());
    let mut lines = code.lines().map(|line| line.split("//").next().unwrap());
    while let Some(line) = lines.next() {
        let words = line.trim_start();
        let (is_public, tree) = match words.split_once("use ") {
            Some((before, tree))
                if before.is_empty() || before.starts_with("pub") && before.ends_with(' ') =>
            {
                (!before.is_empty(), tree)
            }
            _ => {
                paths.extend(words.split("crate::").skip(1).map(path_at));
                continue;
            }
        };
        let mut tree = tree.to_owned();
        while !tree.contains(';') {
            tree += lines.next().expect("a `use` ends with a semicolon");
        }
        let tree = tree.split(';').next().unwrap();
        for (path, name) in leaves(tree) {
            if let Some(path) = absolute(path, at, modules) {
                imports.push(Import { path, name, is_public });
            }
        }
    }
    (imports, paths)
}

fn path_at(text: &str) -> Module {
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
    let path = text[..end.unwrap_or(text.len())].trim_end_matches(':');
    path.split("::").map(str::to_owned).collect()
}

/// `a::{b, c::D as E}` as its leaves, each with the name that it brings into scope.
fn leaves(tree: &str) -> Vec<(Module, String)> {
    let tree = tree.trim();
    let Some((head, rest)) = tree.split_once('{') else {
        let (path, alias) = tree.split_once(" as ").unwrap_or((tree, ""));
        let mut path: Module = path.split("::").map(|part| part.trim().to_owned()).collect();
        if path.len() > 1 && path.last().unwrap() == "self" {
            path.pop();
        }
        let name = if alias.is_empty() { path.last().unwrap().clone() } else { alias.to_owned() };
        return if tree.is_empty() { Vec::new() } else { vec![(path, name)] };
    };
    let inner = rest.rsplit_once('}').expect("braces are closed").0;
    let (mut parts, mut depth) = (vec![String::new()], 0);
    for c in inner.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        parts.last_mut().unwrap().push(c);
    }
    parts
        .iter()
        .filter(|p| !p.trim().is_empty())
        .flat_map(|p| leaves(&(head.to_owned() + p.trim())))
        .collect()
}

/// A path of a `use` from the root of the crate; `None` where it leads out of the crate.
fn absolute(path: Module, at: &Module, modules: &BTreeSet<Module>) -> Option<Module> {
    let supers = path.iter().take_while(|part| *part == "super").count();
    let first = path[0].as_str();
    let child: Module = at.iter().chain([&path[0]]).cloned().collect();
    let (mut from, skip) = match first {
        "crate" => (Module::new(), 1),
        "self" => (at.clone(), 1),
        "super" => (at[..at.len().checked_sub(supers)?].to_vec(), supers),
        _ if modules.contains(&child) => (at.clone(), 0),
        _ => return None,
    };
    from.extend(path.into_iter().skip(skip));
    if from.last().is_some_and(|last| last == "*") {
        from.pop();
    }
    Some(from)
}

fn library() -> Target {
    Target::read("src/lib.rs", "src/bin")
}

fn binary() -> Target {
    Target::read("src/bin/pixelgate/main.rs", "")
}

/// A room and its line in [`ROOMS`]; `None` for `lib.rs`.
fn room(file: &File) -> Option<(usize, &str)> {
    let room = file.module.first()?.as_str();
    let line = ROOMS.iter().position(|rooms| rooms.contains(&room));
    Some((line.unwrap_or_else(|| panic!("{room} has no place in ROOMS")), room))
}

#[test]
fn arrows_between_rooms_point_down() {
    let library = library();
    let mut wrong = BTreeSet::new();
    for (from, to, path) in library.arrows() {
        let (Some((line, name)), Some((below, other))) = (room(from), room(to)) else {
            continue;
        };
        if name != other && below >= line {
            wrong.insert(format!("{}: {name} imports {path}", from.source.path.display()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_files_import_each_other() {
    for target in [library(), binary()] {
        let mut next: BTreeMap<&Module, BTreeMap<&Module, String>> = BTreeMap::new();
        for (from, to, path) in target.arrows() {
            next.entry(&from.module).or_default().insert(&to.module, path);
        }
        let mut circles = BTreeSet::new();
        for start in next.keys() {
            let mut reached = BTreeSet::new();
            let mut open = vec![*start];
            while let Some(at) = open.pop() {
                for to in next.get(at).into_iter().flat_map(BTreeMap::keys) {
                    if reached.insert(*to) {
                        open.push(to);
                    }
                }
            }
            if !reached.contains(start) {
                continue;
            }
            // The arrows by which a circle leaves this file, and comes back to it.
            for (to, path) in &next[start] {
                if returns(&next, to, start) {
                    circles.insert(format!("{} -> {path}", start.join("::")));
                }
            }
        }
        assert!(circles.is_empty(), "arrows that are part of a circle: {circles:#?}");
    }
}

fn returns(
    next: &BTreeMap<&Module, BTreeMap<&Module, String>>,
    from: &Module,
    to: &Module,
) -> bool {
    let mut reached = BTreeSet::from([from]);
    let mut open = vec![from];
    while let Some(at) = open.pop() {
        for further in next.get(at).into_iter().flat_map(BTreeMap::keys) {
            if reached.insert(*further) {
                open.push(further);
            }
        }
    }
    reached.contains(to)
}

#[test]
fn the_reader_of_imports_follows_names_to_their_files() {
    let leaf = |tree: &str| {
        let all =
            leaves(tree).into_iter().map(|(path, name)| format!("{} {name}", path.join("::")));
        all.collect::<Vec<_>>()
    };
    assert_eq!(leaf("crate::a::B"), ["crate::a::B B"]);
    assert_eq!(leaf("a::{self, b::{C, D as E}, *}"), ["a a", "a::b::C C", "a::b::D E", "a::* *"]);
    let library = library();
    let path = ["upstream".to_owned(), "Upstream".to_owned()];
    let file = library.resolve(&path, 8).unwrap();
    assert!(defines(&file.source.text, "Upstream"), "{}", file.source.path.display());
}
