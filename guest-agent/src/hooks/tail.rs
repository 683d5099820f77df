//! The end of what a hook prints, however much it is.

use std::collections::VecDeque;
use std::io::{self, PipeReader, Read};

/// How much of it is logged.
pub(super) const OUTPUT_BYTES: usize = 4096;
/// How much is taken at once: a hook that never stops printing must not keep its time limit from being
/// looked at.
const READS: usize = 64;

/// The end of what was printed.
#[derive(Default)]
pub(super) struct Tail(VecDeque<u8>);

impl Tail {
    /// Takes what there is. `false` when nothing more will come.
    pub(super) fn read(&mut self, output: &mut PipeReader) -> bool {
        let mut chunk = [0; OUTPUT_BYTES];
        for _ in 0..READS {
            match output.read(&mut chunk) {
                Ok(0) => return false,
                Ok(length) => {
                    self.0.extend(&chunk[..length]);
                    let surplus = self.0.len().saturating_sub(OUTPUT_BYTES);
                    self.0.drain(..surplus);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }

    /// On one line, without what a terminal would obey.
    pub(super) fn text(&self) -> String {
        let bytes: Vec<u8> = self.0.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes).trim().replace('\n', " | ");
        text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
    }
}
