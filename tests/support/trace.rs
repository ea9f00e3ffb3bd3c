//! What a process asked of the kernel, as `strace` saw it, and the gRPC messages in what it wrote to its sockets.
//!
//! The order of lines is the order of cause and effect: a call that a thread enters because another one's call returned stands
//! behind that return, since the tracer holds each thread until it has written down what the thread did.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Stdio};

/// The tracer's program.
const STRACE: &str = "strace";
/// Bytes of each call's data that are written down; more than any round or message of a traced test has.
const DATA_BYTES_MAX: usize = 32 << 10;
/// Calls that write: to files, to sockets.
const WRITES: &[&str] = &["pwrite64", "pwritev", "writev", "sendto", "sendmsg"];
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HTTP2_HEADER_LEN: usize = 9;
const HTTP2_DATA: u8 = 0;
const HTTP2_PADDED: u8 = 8;
const GRPC_PREFIX_LEN: usize = 5;

/// Whether processes can be traced here. Says so where they can't: then the caller has nothing to look at.
pub fn can_trace(what_for: &str) -> bool {
    let mut command = Command::new(STRACE);
    command.args(["-D", "-f", "--seccomp-bpf", "-e", "trace=fdatasync", "-o", "/dev/null", "true"]);
    let able = match command.stdout(Stdio::null()).stderr(Stdio::null()).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("it ends with {status}")),
        Err(error) => Err(error.to_string()),
    };
    if let Err(reason) = &able {
        eprintln!("SKIPPED {what_for}: {STRACE} can't be used here ({reason})");
    }
    able.is_ok()
}

/// The words before a command that have its writes and syncs written down to `file`.
pub fn tracing_writes_to(file: &Path) -> Vec<String> {
    let calls = format!("trace=fdatasync,fsync,{}", WRITES.join(","));
    let mut words: Vec<String> =
        [STRACE, "-D", "-f", "--seccomp-bpf", "-yy", "-xx", "-e", &calls].map(String::from).into();
    words.extend(["--absolute-timestamps=format:unix,precision:ns".into(), "--syscall-times=ns".into()]);
    words.extend(["-s".into(), DATA_BYTES_MAX.to_string(), "-o".into(), file.display().to_string()]);
    words
}

/// The words before a command that let one of its calls fail: the `when`th `call` on any of `paths`. What was asked of those paths by
/// that call, or by `others`, is written down to `file`.
pub fn failing(call: &str, error: &str, when: u32, paths: &[&Path], others: &[&str], file: &Path) -> Vec<String> {
    let mut traced = vec![call];
    traced.extend(others.iter().filter(|other| **other != call));
    let (calls, fault) = (format!("trace={}", traced.join(",")), format!("inject={call}:error={error}:when={when}"));
    let mut words: Vec<String> =
        [STRACE, "-D", "-f", "--seccomp-bpf", "-y", "-s", "0", "-e", &calls, "-e", &fault].map(String::from).into();
    for path in paths {
        words.extend(["-P".into(), path.display().to_string()]);
    }
    words.extend(["-o".into(), file.display().to_string()]);
    words
}

/// A point in a trace.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Moment {
    /// Orders what one process did.
    pub line: usize,
    /// Orders what different processes did: nanoseconds of the machine's clock.
    pub ns: u64,
}

/// A call that returned.
#[derive(Clone, Debug)]
pub struct Call {
    pub name: String,
    /// The file's path, or `TCP:[local->remote]`.
    pub target: String,
    /// What was to be written; empty for runs of zeros.
    pub bytes: Vec<u8>,
    /// Whether `bytes` is all of it.
    pub whole: bool,
    /// Where in the file.
    pub position: u64,
    pub result: i64,
    pub entered: Moment,
    pub returned: Moment,
}

/// Reads a trace to its end. Calls stand in the order in which they were entered.
pub fn read(file: &Path) -> Vec<Call> {
    let text = std::fs::read_to_string(file).expect("the trace");
    let mut under_way: BTreeMap<&str, Call> = BTreeMap::new();
    let mut calls = Vec::new();
    for (line, content) in text.lines().enumerate() {
        let Some((thread, rest)) = content.split_once(' ') else { continue };
        let Some((time, rest)) = rest.trim_start().split_once(' ') else { continue };
        let (now, rest) = (Moment { line, ns: nanoseconds(time) }, rest.trim_start());
        if rest.starts_with("+++") || rest.starts_with("---") {
            continue;
        }
        if rest.starts_with("<...") {
            let Some(mut call) = under_way.remove(thread) else { continue };
            // One that never returned, because the process ended, has no outcome.
            if let Some((result, _)) = outcome(rest) {
                (call.result, call.returned) = (result, now);
                calls.push(call);
            }
            continue;
        }
        let mut call = begun(rest, now).unwrap_or_else(|| panic!("line {line} can't be read: {content}"));
        if rest.ends_with("<unfinished ...>") {
            under_way.insert(thread, call);
        } else if let Some((result, took_ns)) = outcome(rest) {
            call.result = result;
            call.returned = Moment { line, ns: now.ns + took_ns };
            calls.push(call);
        }
    }
    calls.sort_by_key(|call| call.entered);
    calls
}

/// `1795267206.907754123` in nanoseconds.
fn nanoseconds(time: &str) -> u64 {
    let (seconds, rest) = time.split_once('.').expect("seconds and nanoseconds");
    seconds.parse::<u64>().expect("seconds") * 1_000_000_000 + rest.parse::<u64>().expect("nanoseconds")
}

/// `name(12<target>, "..." or [{iov_base="...", ...}], ..., position)`.
fn begun(rest: &str, entered: Moment) -> Option<Call> {
    let (name, arguments) = rest.split_once('(')?;
    let (_, from_target) = arguments.split_once('<')?;
    let end = if from_target.starts_with("TCP") { from_target.find("]>")? + 1 } else { from_target.find('>')? };
    let (target, arguments) = from_target.split_at(end);
    let target = match target.starts_with("\\x") {
        true => String::from_utf8(unhex(target)).ok()?,
        false => target.to_string(),
    };
    let (mut bytes, mut whole) = (Vec::new(), true);
    let mut pieces = arguments.split('"');
    pieces.next();
    while let (Some(data), after) = (pieces.next(), pieces.next()) {
        if !data.starts_with("\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00") || name != "pwrite64" {
            bytes.extend(unhex(data));
        }
        whole &= !after.is_some_and(|after| after.starts_with("..."));
    }
    let ended =
        arguments.rsplit_once(')').map_or(arguments, |(before, _)| before).trim_end_matches(" <unfinished ...>");
    let position = ended.rsplit(", ").next().and_then(|last| last.parse().ok()).unwrap_or(0);
    let (name, result, returned) = (name.to_string(), 0, entered);
    Some(Call { name, target, bytes, whole, position, result, entered, returned })
}

/// `... = -1 EIO (...) (INJECTED) <0.000012345>`: the result, and how long it took.
fn outcome(rest: &str) -> Option<(i64, u64)> {
    let (_, after) = rest.rsplit_once(" = ")?;
    let result = after.split(' ').next()?.parse().ok()?;
    let took = after.rsplit_once('<').and_then(|(_, took)| took.strip_suffix('>'));
    Some((result, took.map_or(0, nanoseconds)))
}

/// `\x61\x62` as bytes.
fn unhex(text: &str) -> Vec<u8> {
    let digit = |byte: u8| (byte as char).to_digit(16).expect("a hexadecimal digit") as u8;
    text.as_bytes().chunks_exact(4).map(|four| digit(four[2]) << 4 | digit(four[3])).collect()
}

impl Call {
    pub fn is_write(&self) -> bool {
        WRITES.contains(&self.name.as_str())
    }

    pub fn is_sync(&self) -> bool {
        matches!(self.name.as_str(), "fdatasync" | "fsync")
    }
}

/// A gRPC message that a process sent.
#[derive(Clone, Debug)]
pub struct Sent {
    pub local_port: u16,
    pub remote_port: u16,
    /// When the write that holds its last byte began.
    pub at: Moment,
    pub message: Vec<u8>,
}

/// One direction of a connection, as far as it was looked at.
#[derive(Default)]
struct Connection {
    bytes: Vec<u8>,
    begun: bool,
    /// Bytes of messages that are not whole yet, by stream.
    streams: BTreeMap<u32, Vec<u8>>,
}

/// The gRPC messages in what was written to sockets.
pub fn messages_sent(calls: &[Call]) -> Vec<Sent> {
    let mut connections: BTreeMap<&str, Connection> = BTreeMap::new();
    let mut sent = Vec::new();
    for call in calls.iter().filter(|call| call.is_write() && call.target.starts_with("TCP:") && call.result > 0) {
        assert!(call.whole, "a message of more than {DATA_BYTES_MAX} bytes was not written down whole");
        let Some((local_port, remote_port)) = ports(&call.target) else { continue };
        let connection = connections.entry(&call.target).or_default();
        connection.bytes.extend_from_slice(&call.bytes[..call.result as usize]);
        connection.take_messages(|message| sent.push(Sent { local_port, remote_port, at: call.entered, message }));
    }
    sent
}

/// `TCP:[127.0.0.1:7400->127.0.0.1:41508]`.
fn ports(target: &str) -> Option<(u16, u16)> {
    let (local, remote) = target.strip_prefix("TCP:[")?.strip_suffix(']')?.split_once("->")?;
    let port = |address: &str| address.rsplit_once(':')?.1.parse().ok();
    Some((port(local)?, port(remote)?))
}

impl Connection {
    fn take_messages(&mut self, mut taken: impl FnMut(Vec<u8>)) {
        if !self.begun && HTTP2_PREFACE.starts_with(&self.bytes) && self.bytes.len() < HTTP2_PREFACE.len() {
            return;
        }
        if !std::mem::replace(&mut self.begun, true) && self.bytes.starts_with(HTTP2_PREFACE) {
            self.bytes.drain(..HTTP2_PREFACE.len());
        }
        while let Some([a, b, c, kind, flags, stream @ ..]) = self.bytes.get(..HTTP2_HEADER_LEN) {
            let len = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
            let (kind, flags) = (*kind, *flags);
            let stream = u32::from_be_bytes([stream[0], stream[1], stream[2], stream[3]]);
            assert!(kind <= 9, "frame kind {kind} in what should be HTTP/2");
            if self.bytes.len() < HTTP2_HEADER_LEN + len {
                return;
            }
            let payload: Vec<u8> = self.bytes.drain(..HTTP2_HEADER_LEN + len).skip(HTTP2_HEADER_LEN).collect();
            if kind == HTTP2_DATA {
                assert_eq!(flags & HTTP2_PADDED, 0, "padded frames are not read here");
                let message_bytes = self.streams.entry(stream).or_default();
                message_bytes.extend(payload);
                while let Some(message) = whole_message(message_bytes) {
                    taken(message);
                }
            }
        }
    }
}

fn whole_message(bytes: &mut Vec<u8>) -> Option<Vec<u8>> {
    let [_, length @ ..] = bytes.get(..GRPC_PREFIX_LEN)? else { return None };
    let len = u32::from_be_bytes([length[0], length[1], length[2], length[3]]) as usize;
    (bytes.len() >= GRPC_PREFIX_LEN + len).then(|| bytes.drain(..GRPC_PREFIX_LEN + len).skip(GRPC_PREFIX_LEN).collect())
}

/// What a trace of injected failures says: the call that failed so, and the calls that came after it. Where a thread fills files for later with zeros, what
/// it and the others do to different files is left out: nothing is promised by zeros.
pub fn injected(file: &Path) -> Option<(String, Vec<String>)> {
    /// Zeros are written so many at a time, as `disk/real.rs` does it.
    const ZEROS: &str = ", 262144, ";
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let mut lines = text.lines().skip_while(|line| !line.contains("(INJECTED)"));
    let failed = lines.next()?.to_string();
    let thread = |line: &str| line.split_whitespace().next().map(String::from);
    let path = |line: &str| Some(line.split_once('<')?.1.split_once('>')?.0.to_owned());
    let fillers: BTreeSet<_> = text.lines().filter(|line| line.contains(ZEROS)).map(thread).collect();
    let is_apart = |line: &str| thread(line) != thread(&failed) && path(line) != path(&failed);
    let one_fills = |line: &str| fillers.contains(&thread(line)) || fillers.contains(&thread(&failed));
    let after = lines.filter(|line| line.contains(" = ") && !(is_apart(line) && one_fills(line)));
    Some((failed.clone(), after.map(String::from).collect()))
}
