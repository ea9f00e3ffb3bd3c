//! Keeps what a panic in a run said instead of printing it: it is a finding, and is told with its seed.
//!
//! Only on threads that asked for it; elsewhere a panic is printed as usual. A second panic on a thread whose first was not
//! taken yet is printed after all: it may be about to end the process, which nobody could explain afterwards.

use std::cell::{Cell, RefCell};
use std::panic::{self, PanicHookInfo};
use std::sync::Once;

thread_local! {
    static KEEPS: Cell<bool> = const { Cell::new(false) };
    static KEPT: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// From here on panics of this thread are kept.
pub fn keep_here() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| if KEEPS.get() { keep(info) } else { usual(info) }));
    });
    KEEPS.set(true);
}

/// What the last panic on this thread said, and where; asks once.
pub fn take() -> Option<String> {
    KEPT.take()
}

fn keep(info: &PanicHookInfo<'_>) {
    let said = said(info);
    KEPT.with(|kept| match kept.try_borrow_mut() {
        Ok(mut kept) => match &*kept {
            Some(first) => eprintln!("{}: panicked again: {said}\n  the first time: {first}", thread()),
            None => *kept = Some(said),
        },
        Err(_) => eprintln!("{}: panicked: {said}", thread()),
    });
}

fn said(info: &PanicHookInfo<'_>) -> String {
    let payload = info.payload();
    let message = payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without words");
    match info.location() {
        Some(at) => format!("{message} ({}:{})", at.file(), at.line()),
        None => message.to_owned(),
    }
}

fn thread() -> String {
    std::thread::current().name().unwrap_or("unnamed thread").to_owned()
}
