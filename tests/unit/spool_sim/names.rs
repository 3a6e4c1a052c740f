//! The calls about names: folders, opening, renaming, removing.

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::sync::Arc;

use pixelgate::internals::spool::fs::{Entry, File, FileId, Fs, Open};

use super::calls::Call;
use super::file::SimFile;
use super::{Inode, NameOp, Node, Op, SimFs, absent, apply};

impl Fs for SimFs {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.call(Call::MakeDir)?;
        let mut disk = self.alive()?;
        disk.names_call()?;
        let mut ancestors: Vec<_> = dir.ancestors().collect();
        ancestors.reverse();
        for dir in ancestors {
            if !disk.names.contains_key(dir) {
                disk.try_op(Op::Make)?;
                disk.name_op(NameOp::Set(dir.to_owned(), Node::Dir));
            }
        }
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>> {
        self.call(Call::List)?;
        let disk = self.alive()?;
        if !disk.names.contains_key(dir) {
            return Err(absent());
        }
        let inside = disk.names.iter().filter(|(path, _)| path.parent() == Some(dir));
        Ok(inside
            .map(|(path, node)| Entry {
                name: path.file_name().map(OsString::from).unwrap_or_default(),
                bytes: match node {
                    Node::Dir => 0,
                    Node::File(id) => disk.inodes[id].seen.len() as u64,
                },
            })
            .collect())
    }

    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn File>> {
        self.call(Call::Open)?;
        let mut disk = self.alive()?;
        disk.try_op(Op::Open)?;
        let found = match disk.names.get(path) {
            Some(Node::Dir) => return Err(io::ErrorKind::IsADirectory.into()),
            Some(Node::File(id)) => Some(*id),
            None => None,
        };
        let inode = match (found, how) {
            (None, Open::Read | Open::Write | Open::Direct) => return Err(absent()),
            (Some(id), Open::Create) => {
                let inode = disk.inodes.get_mut(&id).expect("named inodes are there");
                inode.resize(0);
                id
            }
            (Some(id), _) => id,
            (None, Open::Create | Open::Ensure) => {
                disk.names_call()?;
                disk.try_op(Op::Make)?;
                if path.parent().is_some_and(|dir| !disk.names.contains_key(dir)) {
                    return Err(absent());
                }
                let id = disk.next;
                disk.next += 1;
                disk.inodes.insert(id, Inode::default());
                disk.name_op(NameOp::Set(path.to_owned(), Node::File(id)));
                id
            }
        };
        disk.next += 1;
        disk.open_files += 1;
        let handle = (self.life << 32) | disk.next;
        Ok(Arc::new(SimFile { fs: self.clone(), inode, handle, is_direct: how == Open::Direct }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call(Call::Rename)?;
        let mut disk = self.alive()?;
        let node = disk.names.get(from).cloned().ok_or_else(absent)?;
        disk.names_call()?;
        disk.name_op(NameOp::Remove(from.to_owned()));
        disk.name_op(NameOp::Set(to.to_owned(), node));
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.call(Call::Remove)?;
        let mut disk = self.alive()?;
        if !matches!(disk.names.get(path), Some(Node::File(_))) {
            return Err(absent());
        }
        disk.names_call()?;
        disk.name_op(NameOp::Remove(path.to_owned()));
        Ok(())
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        self.call(Call::Remove)?;
        let mut disk = self.alive()?;
        if !disk.names.contains_key(dir) {
            return Err(absent());
        }
        if disk.names.keys().any(|path| path.parent() == Some(dir)) {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        disk.names_call()?;
        disk.name_op(NameOp::Remove(dir.to_owned()));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.call(Call::SyncDir)?;
        let mut disk = self.alive()?;
        disk.names_call()?;
        let all: Vec<_> = disk.unsynced.drain(..).collect();
        // Only the names in that folder become durable, neither its own name nor those in its
        // folders.
        for (call, op) in all {
            if op.path().parent() == Some(dir) {
                apply(&mut disk.synced_names, &op);
            } else {
                disk.unsynced.push((call, op));
            }
        }
        Ok(())
    }

    fn id(&self, path: &Path) -> io::Result<FileId> {
        self.call(Call::FindId)?;
        let disk = self.alive()?;
        let inode = match disk.names.get(path).ok_or_else(absent)? {
            Node::Dir => 0,
            Node::File(id) => *id,
        };
        Ok(FileId { device: 1, inode })
    }

    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        self.call(Call::FreeBytes)?;
        Ok(self.alive()?.free_bytes)
    }
}
