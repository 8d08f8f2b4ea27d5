//! Progress: on a terminal one line that changes, otherwise a line from time to time.

use std::io::{IsTerminal as _, Write as _, stdout};

/// Valid datagrams sent and arrived so far.
pub fn show(sent: u64, arrived: u64) {
    if !sent.is_multiple_of(1_000) {
        return;
    }
    if stdout().is_terminal() {
        print!("\r{}", line(sent, arrived));
        // If a terminal cannot be flushed, progress appears later.
        let _ = stdout().flush();
    } else if sent.is_multiple_of(20_000) {
        println!("{}", line(sent, arrived));
    }
}

/// Shows the final state.
pub fn end(sent: u64, arrived: u64) {
    println!("{}{}", over_line(), line(sent, arrived));
}

/// Shows an event.
pub fn event(what: &str) {
    println!("{}- {what}", over_line());
}

fn over_line() -> &'static str {
    if stdout().is_terminal() { "\r\x1b[K" } else { "" }
}

fn line(sent: u64, arrived: u64) -> String {
    let in_flight = sent.saturating_sub(arrived);
    format!("  {sent:>7} valid datagrams sent: {arrived:>7} arrived, {in_flight:>2} in flight")
}
