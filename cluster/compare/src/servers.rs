//! The processes of one cluster: started so that they can't outlive us, their processor time, and their end.
//!
//! A server may be a tree: a shell script around a virtual machine around helpers. Time is counted and signals are sent over the
//! whole tree. Invariant: when a `Servers` is dropped none of its processes is left.

use crate::failure::Failure;
use rustix::process::{kill_process, set_parent_process_death_signal, Pid, Signal};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Lines of a server's log that a failure shows.
const LOG_LINES: usize = 8;

/// The servers of one cluster, in the order of its nodes.
#[derive(Debug, Default)]
pub struct Servers {
    running: Vec<Server>,
}

#[derive(Debug)]
struct Server {
    name: String,
    child: Child,
    log: PathBuf,
}

/// Reads the processor time of the servers that ran when it was made; outlives the borrow of the cluster.
#[derive(Clone, Debug)]
pub struct CpuProbe {
    roots: Vec<u32>,
}

impl Servers {
    /// Starts a server that writes all it says to `log`.
    ///
    /// It gets no Ctrl-C from the terminal (we stop it ourselves), and dies with the thread that started it, so call this from
    /// the thread that lives longest.
    ///
    /// # Errors
    /// `Io`.
    pub fn start(&mut self, name: &str, log: PathBuf, command: &mut Command) -> Result<(), Failure> {
        let out = File::create(&log).map_err(Failure::io(format!("create {}", log.display())))?;
        let err = out.try_clone().map_err(Failure::io("share a log"))?;
        command.stdin(Stdio::null()).stdout(out).stderr(err).process_group(0);
        // SAFETY: prctl is safe to call between fork and exec.
        unsafe {
            command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
        }
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command.spawn().map_err(Failure::io(format!("start {program}")))?;
        self.running.push(Server { name: name.to_string(), child, log });
        Ok(())
    }

    /// Fails if a server has ended, with the last it said.
    ///
    /// # Errors
    /// `Failed`.
    pub fn check(&mut self) -> Result<(), Failure> {
        for server in &mut self.running {
            if let Ok(Some(status)) = server.child.try_wait() {
                let (name, said) = (&server.name, last_lines(&server.log));
                return Err(Failure::Failed(format!("{name} ended with {status}; it said last:\n{said}")));
            }
        }
        Ok(())
    }

    /// Adds the servers' last words to a failure.
    pub fn blame(&self, failure: Failure) -> Failure {
        let Failure::Failed(text) = failure else { return failure };
        let said: Vec<String> =
            self.running.iter().map(|server| format!("{}:\n{}", server.name, last_lines(&server.log))).collect();
        Failure::Failed(format!("{text}\n{}", said.join("\n")))
    }

    /// The probe of their processor time.
    pub fn cpu(&self) -> CpuProbe {
        CpuProbe { roots: self.running.iter().map(|server| server.child.id()).collect() }
    }

    /// Kills one server with all its children, as `kill -9` does, and waits until it is gone.
    pub fn kill(&mut self, at: usize) {
        let server = &mut self.running[at];
        let tree = tree_of(server.child.id());
        for pid in &tree {
            signal(*pid);
        }
        let _ = server.child.wait();
        for pid in tree {
            reap(pid);
        }
    }

    /// Kills all: their data is removed anyway.
    pub fn stop(&mut self) {
        for at in 0..self.running.len() {
            self.kill(at);
        }
        self.running.clear();
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop();
    }
}

impl CpuProbe {
    /// User and system time of all the trees so far, ended children included.
    pub fn time(&self) -> Duration {
        let processes = processes();
        let ticks: u64 =
            self.roots.iter().flat_map(|root| tree_in(&processes, *root)).map(|pid| processes[&pid].1).sum();
        Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
    }
}

/// Has orphans handed to us and not to the system's first process, so that a server's children can be found and stopped when it
/// is gone.
///
/// # Errors
/// `Failed`.
pub fn adopt_orphans() -> Result<(), Failure> {
    let me = rustix::process::getpid();
    rustix::process::set_child_subreaper(Some(me)).map_err(|error| Failure::of("cannot adopt orphans", error))
}

/// Kills what servers left behind, such as daemons they put beside themselves, and takes note of all that ended. Only for the end,
/// when nothing is left that others wait for.
pub fn end_orphans() {
    let me = std::process::id();
    for pid in tree_of(me).into_iter().filter(|pid| *pid != me) {
        signal(pid);
    }
    while let Ok(Some(_)) = rustix::process::waitpid(None, rustix::process::WaitOptions::empty()) {}
}

/// Parent and processor ticks of every process.
fn processes() -> BTreeMap<u32, (u32, u64)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some((pid, parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?))).collect()
}

/// Parent, and ticks of the process and its ended children, from a line of `/proc/PID/stat`.
fn parse_stat(line: &str) -> Option<(u32, u64)> {
    // The name in parentheses may hold blanks and parentheses; nothing behind it does.
    let (_, rest) = line.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks: Option<u64> = (11..15).map(|at| fields.get(at)?.parse::<u64>().ok()).sum();
    Some((fields.get(1)?.parse().ok()?, ticks?))
}

fn tree_of(root: u32) -> Vec<u32> {
    tree_in(&processes(), root)
}

fn tree_in(processes: &BTreeMap<u32, (u32, u64)>, root: u32) -> Vec<u32> {
    let mut tree: Vec<u32> = processes.contains_key(&root).then_some(root).into_iter().collect();
    let mut next = 0;
    while next < tree.len() {
        let parent = tree[next];
        tree.extend(processes.iter().filter(|(_, (of, _))| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    tree
}

fn signal(pid: u32) {
    if let Some(pid) = Pid::from_raw(pid as i32) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// Waits for an orphan that was killed. Those that were never ours to wait for are refused at once.
fn reap(pid: u32) {
    if let Some(pid) = Pid::from_raw(pid as i32) {
        let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
    }
}

fn last_lines(log: &PathBuf) -> String {
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    if lines.is_empty() {
        return "    (nothing)".to_string();
    }
    let last: Vec<String> = lines.iter().rev().take(LOG_LINES).rev().map(|line| format!("    {line}")).collect();
    last.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let line = "42 (a) b (c)) S 7 42 42 0 -1 4194304 500 0 0 0 11 22 33 44 20 0 1 0 100 0 0";
        assert_eq!(parse_stat(line), Some((7, 110)));
    }

    #[test]
    fn a_server_is_stopped_with_its_children() {
        let dir = std::env::temp_dir();
        let log = dir.join(format!("servers-test-{}.log", std::process::id()));
        let mut servers = Servers::default();
        let mut shell = Command::new("sh");
        shell.args(["-c", "sleep 300 & sleep 300"]);
        servers.start("shell", log.clone(), &mut shell).expect("sh starts");
        let root = servers.running[0].child.id();
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        let mut tree = tree_of(root);
        while tree.len() < 3 && std::time::Instant::now() < deadline {
            std::thread::yield_now();
            tree = tree_of(root);
        }
        assert_eq!(tree.len(), 3, "the shell and its two children");
        servers.stop();
        let alive = |pid: &u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
        };
        while tree.iter().any(alive) && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert!(!tree.iter().any(alive), "all three are gone");
        let _ = fs::remove_file(log);
    }
}
