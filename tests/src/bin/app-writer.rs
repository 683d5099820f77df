//! The tests' application: `app-writer run FILE STATUS` writes records as fast as it can, each
//! synced (`pair` to two files, the second after the first), and keeps in STATUS (on a tmpfs) how many were acknowledged and the longest time between
//! two, in microseconds. `app-writer verify FILE` prints how many are there.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use harness::records;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["run", file, status] => run(&[file], Path::new(status)),
        ["pair", first, second, status] => run(&[first, second], Path::new(status)),
        ["verify", file] => {
            println!("{}", records::verify(Path::new(file))?);
            Ok(())
        }
        _ => anyhow::bail!("app-writer run FILE STATUS | pair FILE FILE STATUS | verify FILE"),
    }
}

fn run(paths: &[&str], status: &Path) -> anyhow::Result<()> {
    let mut files = paths.iter().map(File::create).collect::<Result<Vec<_>, _>>()?;
    let status = File::create(status)?;
    let mut longest_us = 0;
    let mut last = None::<Instant>;
    for number in 0u64.. {
        for file in &mut files {
            file.write_all(&records::record(number))?;
            file.sync_data()?;
        }
        let now = Instant::now();
        let gap = last.map_or(0, |last| now.duration_since(last).as_micros());
        last = Some(now);
        longest_us = longest_us.max(gap);
        // Fixed width, one write: a reader sees a whole line.
        status.write_all_at(format!("{:020} {longest_us:020}\n", number + 1).as_bytes(), 0)?;
    }
    Ok(())
}
