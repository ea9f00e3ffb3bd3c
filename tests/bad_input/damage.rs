//! What damage on a node's disk comes to: a torn end is cut, what can be built anew is, and all else is refused or fails the reads that
//! meet it, with file and position. No record that is served is wrong, and the other nodes go on.

use crate::support::{
    balsa_with, expect, inspect, journal_files, json_lines, noise, printed, said, wait_for, wait_until, Cluster,
};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn overwrite(file: &Path, position: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(file).expect("the file");
    file.write_all_at(bytes, position).expect("the bytes");
}

fn flip(file: &Path, position: u64) {
    let open = File::open(file).expect("the file");
    let mut byte = [0];
    open.read_exact_at(&mut byte, position).expect("a byte");
    overwrite(file, position, &[byte[0] ^ 0x10]);
}

/// Three nodes with a log of some length; the third is stopped.
async fn with_a_stopped_node(name: &str) -> Cluster {
    let mut cluster = Cluster::start(name, 3).await;
    expect(&cluster.balsa(&["topic", "create", "t", "--partitions", "2"]), 0, &[]);
    let lines: String = (0..2_000).map(|line| format!("line {line}\n")).collect();
    expect(&cluster.balsa_fed(&["append", "t", "--batch-bytes", "1000"], lines.as_bytes()), 0, &[]);
    cluster.nodes[2].stop();
    cluster
}

async fn the_third_node_tells_all(cluster: &Cluster) {
    let servers = cluster.nodes[2].client.to_string();
    wait_until("the node to serve", || async {
        let lines = printed(&balsa_with(&servers, &["read", "t"], b""));
        (lines.lines().count() == 2_000).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_torn_end_of_the_journal_is_cut_and_nothing_is_lost() {
    let mut cluster = with_a_stopped_node("bad-torn").await;
    for torn in [None, Some(noise(9, 3_000)), Some(vec![0xff; 512])] {
        expect(&inspect("journal", &cluster.nodes[2].dir.join("journal")), 0, &[]);
        let files = journal_files(&cluster.nodes[2].dir);
        let (last, end) = files.iter().rfind(|(_, end)| *end > 4_096).expect("a file with rounds");
        let content = fs::read(last).expect("the journal");
        // A sector that was written here before, and nothing behind it: what a crash in the middle of a write leaves.
        let sector = content[*end as usize - 512..*end as usize].to_vec();
        overwrite(last, *end, &torn.unwrap_or(sector));
        cluster.nodes[2].start();
        the_third_node_tells_all(&cluster).await;
        cluster.nodes[2].kill();
    }
    cluster.nobody_panicked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotten_or_incomplete_journal_is_refused_with_file_position_and_groups() {
    let mut cluster = with_a_stopped_node("bad-rot").await;
    let dir = cluster.nodes[2].dir.clone();
    let kept = cluster.scratch.0.join("kept");
    copy_all(&dir, &kept);
    let refuses = |cluster: &mut Cluster, what: &str, parts: &[&str]| {
        let (code, text) = cluster.nodes[2].refuses_to_start();
        assert_eq!(code, 7, "{what}: {text}");
        for part in parts {
            assert!(text.contains(part), "{what}: {part:?} is not said: {text}");
        }
    };
    let files = journal_files(&dir);
    let whole = inspect("journal", &dir.join("journal"));
    expect(&whole, 0, &[]);
    let rounds: Vec<_> = json_lines(&whole)
        .into_iter()
        .filter(|line| line["what"] == "frame" && line["kind"] == "entry" && line["bytes"].as_u64() > Some(100))
        .filter_map(|line| Some((line["position"].as_u64()?, line["group"].as_u64()?)))
        .collect();
    let (first, _) = files.iter().find(|(_, end)| *end > 8_192).expect("a file with rounds");
    // In the payload of an entry: the frame's header still tells whose it is.
    for (position, group) in [rounds[0], rounds[rounds.len() / 2]] {
        flip(first, position + 100);
        let name = first.file_name().and_then(|name| name.to_str()).expect("a name");
        refuses(&mut cluster, "a flipped byte", &[name, "damaged at position", &format!("groups concerned: {group}")]);
        let report = inspect("journal", &dir.join("journal"));
        expect(&report, 7, &[name, "position"]);
        assert!(json_lines(&report).iter().any(|line| line["what"] == "damage"));
        flip(first, position + 100);
    }
    // In the headers, and everywhere at once.
    flip(first, 20);
    refuses(&mut cluster, "a damaged header", &["position 0", "header"]);
    flip(first, 20);
    files.iter().for_each(|(file, _)| flip(file, 4_200));
    refuses(&mut cluster, "each file", &["damaged at position"]);
    files.iter().for_each(|(file, _)| flip(file, 4_200));

    for (file, _) in &files {
        fs::rename(file, kept.join("aside")).expect("the file goes");
        let name = file.display().to_string();
        refuses(&mut cluster, "a missing file", &[&name, "the file is missing"]);
        expect(&inspect("journal", &dir.join("journal")), 7, &[&name, "missing"]);
        fs::rename(kept.join("aside"), file).expect("the file comes back");
    }
    for name in ["identity-1", "identity-2"] {
        fs::write(dir.join("journal").join(name), b"not this").expect("the identity");
    }
    refuses(&mut cluster, "no identity", &["identity"]);
    expect(&inspect("journal", &dir.join("journal")), 7, &["identity"]);
    fs::remove_dir_all(dir.join("journal")).expect("the journal goes");
    refuses(&mut cluster, "no journal", &["journal is missing", "no command yet to replace a node"]);

    // All of it back: the node goes on as if nothing had been, and the other two never stopped.
    fs::remove_dir_all(&dir).expect("the directory goes");
    copy_all(&kept, &dir);
    cluster.nodes[2].start();
    the_third_node_tells_all(&cluster).await;
    cluster.nobody_panicked();
}

fn copy_all(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg("--sparse=always").arg(from).arg(to).status();
    assert!(copied.expect("cp runs").success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotten_segment_fails_the_reads_and_a_start_without_its_index_and_never_gives_wrong_data() {
    let mut cluster = Cluster::start("bad-segment", 1).await;
    expect(&cluster.balsa(&["topic", "create", "t"]), 0, &[]);
    // Enough that a base moves, and that the front is read from the disk.
    let line = "0123456789".repeat(10);
    let lines: String = (0..120_000).map(|number| format!("{number:06} {line}\n")).collect();
    expect(&cluster.balsa_fed(&["append", "t"], lines.as_bytes()), 0, &[]);
    let segment = wait_for("a segment with a synced front", || {
        let groups = fs::read_dir(cluster.nodes[0].dir.join("groups")).ok()?.flatten();
        let files = groups.filter_map(|group| fs::read_dir(group.path()).ok()).flat_map(Iterator::flatten);
        let mut files = files.map(|file| file.path()).filter(|path| path.extension().is_some_and(|ext| ext == "seg"));
        files.find(|path| fs::metadata(path).is_ok_and(|file| file.len() > 8 << 20))
    });
    assert_eq!(printed(&cluster.balsa(&["read", "t"])), lines);
    flip(&segment, 1 << 20);
    let name = segment.display().to_string();
    let damaged = cluster.balsa(&["read", "t"]);
    expect(&damaged, 7, &[&name, "damaged at position"]);
    let served = printed(&damaged);
    assert!(lines.starts_with(&served), "what was served before the damage is right");
    // Behind the damage all is well.
    let tail = cluster.balsa(&["read", "t", "--from", "119999"]);
    assert_eq!(printed(&tail), format!("119999 {line}\n"), "{}", said(&tail));

    assert!(cluster.nodes[0].stop().success());
    expect(&inspect("segment", &segment), 7, &[&name, "damaged at position"]);
    // A start does not read again what its index tells of; whoever reads it is refused, as before.
    cluster.nodes[0].start();
    cluster.wait_until_up().await;
    expect(&cluster.balsa(&["read", "t"]), 7, &[&name, "damaged at position"]);
    assert!(cluster.nodes[0].stop().success());
    // Without the index it is scanned, and must be whole.
    fs::remove_file(segment.with_extension("idx")).expect("an index of what was synced");
    let (code, text) = cluster.nodes[0].refuses_to_start();
    assert_eq!(code, 7, "{text}");
    assert!(text.contains(&name) && text.contains("damaged at position"), "{text}");
    flip(&segment, 1 << 20);
    expect(&inspect("segment", &segment), 0, &[]);
    let aside = cluster.scratch.0.join("aside");
    fs::rename(&segment, &aside).expect("the segment goes");
    let (code, text) = cluster.nodes[0].refuses_to_start();
    assert_eq!(code, 7, "{text}");
    assert!(text.contains("lacks the log from index"), "{text}");
    fs::rename(&aside, &segment).expect("the segment comes back");
    cluster.nodes[0].start();
    cluster.wait_until_up().await;
    assert_eq!(printed(&cluster.balsa(&["read", "t"])), lines);
    cluster.nobody_panicked();
}

/// Small segments, so that a short log has sealed ones.
const SMALL_SEGMENTS: &str = "segment_bytes = 4194304";

/// The text of the topic `t` of [`with_sealed_segments`].
fn long_text() -> String {
    let line = "0123456789".repeat(20);
    (0..100_000).map(|number| format!("{number:06} {line}\n")).collect()
}

/// Three nodes whose only partition has sealed segments, all written, with their indexes.
async fn with_sealed_segments(name: &str) -> (Cluster, Vec<PathBuf>) {
    let cluster = Cluster::start_with(name, 3, SMALL_SEGMENTS).await;
    expect(&cluster.balsa(&["topic", "create", "t"]), 0, &[]);
    expect(&cluster.balsa_fed(&["append", "t"], long_text().as_bytes()), 0, &[]);
    let segments = wait_for("sealed segments on the third node", || {
        let sealed = sealed_segments(&cluster.nodes[2].dir);
        (sealed.len() >= 3).then_some(sealed)
    });
    (cluster, segments)
}

/// The sealed segments of a node whose only partition has some, oldest first: those that lie wholly below the partition's base. What is beyond it may be
/// dropped at a start, since the journal holds it.
fn sealed_segments(dir: &Path) -> Vec<PathBuf> {
    let groups = fs::read_dir(dir.join("groups")).expect("the groups").flatten();
    let files = groups.filter_map(|group| fs::read_dir(group.path()).ok()).flat_map(Iterator::flatten);
    let mut segments: Vec<PathBuf> = files.map(|file| file.path()).collect();
    segments.retain(|path| path.extension().is_some_and(|ext| ext == "seg"));
    segments.sort();
    let is_base = |frame: &serde_json::Value| frame["kind"] == "base" && frame["group"] != 0;
    let frames = json_lines(&inspect("journal", &dir.join("journal")));
    let base = frames.iter().filter(|frame| is_base(frame)).filter_map(|frame| frame["index"].as_u64()).max();
    let count = segments.iter().skip(1).filter(|next| Some(file_index(next)) <= base.map(|base| base + 1)).count();
    segments.truncate(count);
    segments.retain(|path| path.with_extension("idx").exists());
    segments
}

fn read_from(cluster: &Cluster, node: usize, from: &str) -> Output {
    balsa_with(&cluster.nodes[node].client.to_string(), &["read", "t", "--partition", "0", "--from", from], b"")
}

async fn every_node_tells_all(cluster: &Cluster) {
    let text = long_text();
    for node in 0..3 {
        wait_until("the node to serve", || async {
            (printed(&read_from(cluster, node, "earliest")) == text).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rot_in_a_sealed_segment_fails_the_reads_that_meet_it_and_nothing_else() {
    let (mut cluster, segments) = with_sealed_segments("bad-sealed").await;
    let (text, rotten) = (long_text(), &segments[1]);
    let name = rotten.display().to_string();
    flip(rotten, 2 << 20);
    for start_again in [false, true] {
        if start_again {
            cluster.nodes[2].kill();
            cluster.nodes[2].start();
            cluster.wait_until_up().await;
        }
        let damaged = read_from(&cluster, 2, "earliest");
        expect(&damaged, 7, &[&name, "damaged at position", "other nodes hold the same records", "--servers"]);
        let served = printed(&damaged);
        assert!(text.starts_with(&served) && served.len() > 4 << 20, "right up to the damage: {}", served.len());
        let behind = read_from(&cluster, 2, "99990");
        assert!(printed(&behind).starts_with(&text[text.len() - 10 * text.len() / 100_000..]), "{}", said(&behind));
        for node in 0..2 {
            assert!(printed(&read_from(&cluster, node, "earliest")).starts_with(&text), "node {} serves all", node + 1);
        }
        expect(&cluster.balsa(&["append", "t", "more"]), 0, &[]);
        wait_until("the record on the node with the damage", || async {
            (printed(&read_from(&cluster, 2, "100000")).lines().next() == Some("more")).then_some(())
        })
        .await;
    }
    expect(&inspect("segment", rotten), 7, &[&name, "damaged at position"]);
    flip(rotten, 2 << 20);
    let whole = printed(&read_from(&cluster, 2, "earliest"));
    assert!(whole == format!("{text}more\nmore\n"), "with the bytes back all of it is served");
    cluster.nobody_panicked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sealed_segments_that_are_missing_or_cut_are_refused_at_the_start_and_the_others_go_on() {
    let (mut cluster, segments) = with_sealed_segments("bad-missing").await;
    assert!(cluster.nodes[2].stop().success());
    let (aside, text) = (cluster.scratch.0.join("aside"), long_text());
    let way_out = ["put back the very files", "the other nodes hold the same records"];
    let folder = segments[0].parent().expect("a folder").display().to_string();
    let mut refuses = |what: &str, parts: &[&str]| {
        let (code, said) = cluster.nodes[2].refuses_to_start();
        assert_eq!(code, 7, "{what}: {said}");
        for part in parts.iter().chain(&way_out) {
            assert!(said.contains(part), "{what}: {part:?} is not said: {said}");
        }
    };
    let indexes: Vec<String> = segments.iter().map(|path| file_index(path).to_string()).collect();
    // Without the oldest the log would start later, as if it had been trimmed.
    fs::rename(&segments[0], &aside).expect("the segment goes");
    refuses("the oldest is missing", &["older segment files are missing", "starts at 0"]);
    fs::rename(&aside, &segments[0]).expect("the segment comes back");
    for at in 1..segments.len() {
        fs::rename(&segments[at], &aside).expect("the segment goes");
        refuses("one is missing", &[&folder, &format!("lacks the log from index {} on", indexes[at])]);
        fs::rename(&aside, &segments[at]).expect("the segment comes back");
    }
    // Cut short, in the middle of a frame and down to nothing; with its index, and without.
    let (cut, index) = (&segments[2], segments[2].with_extension("idx"));
    let (whole, kept_index) = (fs::read(cut).expect("a segment"), fs::read(&index).expect("its index"));
    for len in [whole.len() - 1, whole.len() / 2, 30, 0] {
        fs::write(cut, &whole[..len]).expect("the cut segment");
        refuses("cut short", &[&cut.display().to_string(), "damaged at position"]);
        fs::remove_file(&index).expect("the index goes");
        refuses("cut short, and no index", &[&cut.display().to_string(), "damaged at position"]);
        fs::write(&index, &kept_index).expect("the index comes back");
    }
    // Rot that the start meets, because the index is gone as well.
    fs::write(cut, &whole).expect("the whole segment");
    flip(cut, 1 << 20);
    fs::remove_file(&index).expect("the index goes");
    refuses("rot, and no index", &[&cut.display().to_string(), "damaged at position", "checksum differs"]);
    flip(cut, 1 << 20);
    // Another segment in its place.
    fs::copy(&segments[1], cut).expect("the wrong segment");
    refuses("another's content", &[&cut.display().to_string(), "not the one before its name's index"]);
    fs::write(cut, &whole).expect("the whole segment");

    for node in 0..2 {
        assert!(printed(&read_from(&cluster, node, "earliest")) == text, "node {} serves all", node + 1);
    }
    expect(&cluster.balsa(&["append", "t", "more"]), 0, &[]);
    cluster.nodes[2].start();
    wait_until("the node to tell all", || async {
        (printed(&read_from(&cluster, 2, "earliest")) == format!("{text}more\n")).then_some(())
    })
    .await;
    cluster.nobody_panicked();
}

/// The index that a segment is named by.
fn file_index(path: &Path) -> u64 {
    path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok()).expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotten_missing_or_wrong_index_is_built_anew_and_changes_no_answer() {
    let (mut cluster, segments) = with_sealed_segments("bad-index").await;
    let text = long_text();
    let index = segments[1].with_extension("idx");
    let good = fs::read(&index).expect("the index");
    let other = fs::read(segments[2].with_extension("idx")).expect("another index");
    let at = |position: usize| {
        let mut bytes = good.clone();
        bytes[position] ^= 0x10;
        bytes
    };
    let bad = [
        Some(at(40)),
        Some(at(good.len() - 20)),
        Some(at(3)),
        Some(good[..good.len() / 2].to_vec()),
        Some(good[..50].to_vec()),
        Some(Vec::new()),
        Some(noise(11, good.len())),
        Some(other),
        None,
    ];
    for (number, bytes) in bad.into_iter().enumerate() {
        cluster.nodes[2].kill();
        match bytes {
            Some(bytes) => fs::write(&index, bytes).expect("the bad index"),
            None => fs::remove_file(&index).expect("the index goes"),
        }
        cluster.nodes[2].start();
        // By offset first: that is what the index is for.
        for offset in [20_000, 39_999, 60_000] {
            let from = wait_until("the node to serve", || async {
                let read = read_from(&cluster, 2, &offset.to_string());
                read.status.success().then_some(printed(&read))
            })
            .await;
            assert!(from == text[offset * text.len() / 100_000..], "bad index {number}, from {offset}");
        }
    }
    every_node_tells_all(&cluster).await;
    assert!(cluster.nodes[2].logged().contains("rebuilt"), "it is said in the log");
    assert_eq!(fs::read(&index).expect("the index"), good, "what is built anew is what was there");
    cluster.nobody_panicked();
}
