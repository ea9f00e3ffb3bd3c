//! Lines in the common log format of web servers, made from a seed: the data that people append first.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const PATHS: &[&str] = &["/", "/index.html", "/about", "/login", "/api/orders", "/img/logo.png", "/robots.txt"];
const METHODS: &[&str] = &["GET", "GET", "GET", "POST", "HEAD"];
const STATUSES: &[u16] = &[200, 200, 200, 304, 404, 500];
const MONTHS: &[&str] = &["Jan", "Feb", "Mar", "Apr", "May", "Jun"];

/// One request: who asked, and the line that the server wrote.
#[derive(Clone, Debug)]
pub struct Line {
    pub client: String,
    pub text: String,
}

/// `count` lines from `clients` addresses. Each line ends with its number, so that no two are alike.
pub fn lines(seed: u64, count: usize, clients: u32) -> Vec<Line> {
    let mut random = StdRng::seed_from_u64(seed);
    (0..count).map(|number| line(&mut random, number, clients)).collect()
}

fn line(random: &mut StdRng, number: usize, clients: u32) -> Line {
    let address = random.gen_range(0..clients);
    let client = format!("10.{}.{}.{}", address >> 16 & 255, address >> 8 & 255, address & 255);
    let seconds = number / 40;
    let time = format!(
        "{:02}/{}/2026:{:02}:{:02}:{:02} +0000",
        1 + seconds / 86_400 % 28,
        MONTHS[seconds / 86_400 / 28 % MONTHS.len()],
        seconds / 3_600 % 24,
        seconds / 60 % 60,
        seconds % 60
    );
    let (method, path) = (METHODS[random.gen_range(0..METHODS.len())], PATHS[random.gen_range(0..PATHS.len())]);
    let (status, bytes) = (STATUSES[random.gen_range(0..STATUSES.len())], random.gen_range(0..50_000));
    let text = format!("{client} - - [{time}] \"{method} {path}?n={number} HTTP/1.1\" {status} {bytes}");
    Line { client, text }
}
