//! The state machine of the scenarios: a list of records. A record `bad...` is refused.

use balsa::group::machine::{Applied, Place, StateMachine};
use balsa::ids::Offset;
use balsa::segments::verdict::{Refusal, Verdict};
use bytes::Bytes;

/// See the module's text.
#[derive(Clone, Default)]
pub struct Records(pub Vec<String>);

impl StateMachine for Records {
    type View = usize;

    fn apply(&mut self, _: Place, command: &Bytes) -> Applied {
        let text = String::from_utf8_lossy(command).into_owned();
        let verdict = if text.starts_with("bad") {
            Verdict::Refused(Refusal::Malformed)
        } else {
            self.0.push(text);
            Verdict::Appended { offset: Offset(self.0.len() as u64 - 1), count: 1 }
        };
        Applied { verdict, batch_at: None }
    }

    fn adds_data(_: &Bytes) -> bool {
        true
    }

    fn log_start(&self) -> Offset {
        Offset::ZERO
    }

    fn tail(&self) -> Offset {
        Offset(self.0.len() as u64)
    }

    fn snapshot(&self) -> Bytes {
        Bytes::from(self.0.join("\n"))
    }

    fn restore(snapshot: &Bytes) -> Result<Self, String> {
        let text = std::str::from_utf8(snapshot).map_err(|error| error.to_string())?;
        Ok(Records(text.lines().map(str::to_owned).collect()))
    }

    fn view(&self) -> usize {
        self.0.len()
    }
}
