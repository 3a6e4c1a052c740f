//! The report, a table in Markdown.

use crate::load::Sample;
use crate::scenario::Contender;

/// The measurements of one contender.
pub struct Row<'a> {
    pub contender: &'a Contender,
    /// One sample for each round.
    pub samples: Vec<Sample>,
    pub instructions: Option<f64>,
    pub peak_mib: f64,
}

impl Row<'_> {
    fn median(&self, value: fn(&Sample) -> f64) -> f64 {
        median(self.samples.iter().map(value))
    }

    /// The memory that a connection takes, of the first round: later ones find it taken already.
    fn connection_kib(&self) -> Option<f64> {
        self.samples[0].connection_kib
    }
}

/// Prints one scenario's table. Ratios are to nginx; that of CPU is the median of the rounds'.
pub fn print(scenario: &str, rows: &[Row<'_>]) {
    let nginx = rows.iter().find(|row| row.contender.is_nginx()).expect("nginx takes part");
    let mut heads = vec![scenario, "requests/s", "CPU µs", "× nginx", "instructions", "× nginx"];
    heads.extend(["p50 µs", "p99 µs", "p999 µs", "peak MiB"]);
    if nginx.connection_kib().is_some() {
        heads.push("KiB a connection");
    }
    println!("\n| {} |\n{}|", heads.join(" | "), "|---".repeat(heads.len()));
    for row in rows {
        let rounds = row.samples.iter().zip(&nginx.samples);
        let cpu_ratio = median(rounds.map(|(own, nginx)| own.cpu_us / nginx.cpu_us));
        let of_nginx = row.instructions.zip(nginx.instructions).map(|(own, nginx)| own / nginx);
        let shown = |figure: Option<f64>, digits: usize| {
            figure.map_or("–".to_owned(), |figure| format!("{figure:.digits$}"))
        };
        let mut cells = vec![
            row.contender.name.to_owned(),
            shown(Some(row.median(|sample| sample.per_second)), 0),
            shown(Some(row.median(|sample| sample.cpu_us)), 1),
            shown(Some(cpu_ratio), 2),
            shown(row.instructions, 0),
            shown(of_nginx, 2),
            shown(Some(row.median(|sample| sample.p50_us)), 0),
            shown(Some(row.median(|sample| sample.p99_us)), 0),
            shown(Some(row.median(|sample| sample.p999_us)), 0),
            shown(Some(row.peak_mib), 1),
        ];
        cells.extend(row.connection_kib().map(|kib| shown(Some(kib), 1)));
        println!("| {} |", cells.join(" | "));
    }
}

/// The median of some figures.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
