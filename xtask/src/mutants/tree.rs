//! A copy of the workspace that may be changed, and commands whose output is kept.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

/// A copy of the workspace.
pub struct Tree(PathBuf);

/// A file of the copy that has been changed; it is as before once this is dropped.
pub struct Changed {
    path: PathBuf,
    text: String,
}

impl Tree {
    /// Makes `to` the same as `from`, without what is built. A file that is the same already is not touched, so that
    /// cargo builds only what has changed.
    pub fn copy(from: &Path, to: &Path) -> Result<Self> {
        copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
        Ok(Self(to.to_owned()))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Replaces a text that a file has exactly once.
    pub fn change(&self, file: &str, from: &str, to: &str) -> Result<Changed> {
        let path = self.0.join(file);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let count = text.matches(from).count();
        ensure!(count == 1, "the mutant does not apply: its `from` is {count} times in the file, not once");
        fs::write(&path, text.replacen(from, to, 1))
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Changed { path, text })
    }
}

impl Drop for Changed {
    fn drop(&mut self) {
        // If this fails, the next copy repairs it.
        let _ = fs::write(&self.path, &self.text);
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    let mut kept = BTreeSet::new();
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == "target" || name == ".git" {
            continue;
        }
        let (source, copied) = (entry.path(), to.join(&name));
        if entry.file_type()?.is_dir() {
            copy(&source, &copied)?;
        } else {
            let bytes = fs::read(&source)?;
            if fs::read(&copied).ok().as_ref() != Some(&bytes) {
                fs::write(&copied, bytes)?;
            }
        }
        kept.insert(name);
    }
    for entry in fs::read_dir(to)? {
        let entry = entry?;
        if kept.contains(&entry.file_name()) {
            continue;
        }
        match entry.file_type()?.is_dir() {
            true => fs::remove_dir_all(entry.path())?,
            false => fs::remove_file(entry.path())?,
        }
    }
    Ok(())
}

/// Runs a command and returns all that it printed. Its status is `None` if it was stopped after so long.
pub fn run(command: &mut Command, patience: Option<Duration>) -> Result<(Option<ExitStatus>, String)> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A group of its own, to be stopped with all that it has started.
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    let mut stdout = child.stdout.take().context("it is a pipe")?;
    let mut stderr = child.stderr.take().context("it is a pipe")?;
    let reader = thread::spawn(move || {
        let mut said = Vec::new();
        stderr.read_to_end(&mut said).map(|_| said)
    });
    let printing = thread::spawn(move || {
        let mut said = Vec::new();
        stdout.read_to_end(&mut said).map(|_| said)
    });
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if patience.is_some_and(|patience| start.elapsed() > patience) {
            stop_group(child.id())?;
            child.wait()?;
            break None;
        }
        thread::sleep(Duration::from_millis(20));
    };
    let mut said = Vec::new();
    for thread in [printing, reader] {
        said.extend(thread.join().ok().context("a thread has panicked")??);
    }
    Ok((status, String::from_utf8_lossy(&said).into_owned()))
}

/// Stops a process group: SIGTERM, at which tests remove what they have made.
fn stop_group(leader: u32) -> Result<()> {
    // The shell's own `kill`: the program is in procps, which minimal systems do not have.
    let status = Command::new("sh").args(["-c", "kill -s TERM -- \"-$0\"", &leader.to_string()]).status();
    ensure!(status.context("cannot start sh")?.success(), "cannot stop process group {leader}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_changed_and_the_original_is_not() {
        let place = std::env::temp_dir().join(format!("tollgate-tree-{}", std::process::id()));
        let (from, to) = (place.join("from"), place.join("to"));
        fs::create_dir_all(from.join("a/target")).unwrap();
        fs::write(from.join("a/file"), "one two two").unwrap();
        fs::create_dir_all(to.join("old")).unwrap();
        let tree = Tree::copy(&from, &to).unwrap();
        assert!(!to.join("old").exists() && !to.join("a/target").exists());
        let read = |of: &Path| fs::read_to_string(of.join("a/file")).unwrap();
        let changed = tree.change("a/file", "one", "1").unwrap();
        assert_eq!((read(&to).as_str(), read(&from).as_str()), ("1 two two", "one two two"));
        drop(changed);
        assert_eq!(read(&to), "one two two");
        for (text, count) in [("two", "2 times"), ("three", "0 times")] {
            let error = tree.change("a/file", text, "").err().unwrap().to_string();
            assert!(error.contains(count), "{error}");
        }
        fs::remove_dir_all(place).unwrap();
    }

    #[test]
    fn what_takes_too_long_is_stopped() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo said; echo aside >&2; sleep 60; true"]);
        let (status, said) = run(&mut command, Some(Duration::from_millis(300))).unwrap();
        assert_eq!((status, said.as_str()), (None, "said\naside\n"));
    }
}
