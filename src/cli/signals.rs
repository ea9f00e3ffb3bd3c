//! Ctrl-C and SIGTERM, as futures.

/// Waits until the user or the system asks this process to stop.
#[cfg(all(unix, not(madsim)))]
pub(super) async fn stop_asked() {
    use tokio::signal::unix::{signal, SignalKind};
    // Without a handler the signal ends the process at once, which is all that could be done then.
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// Waits until the user or the system asks this process to stop.
#[cfg(not(all(unix, not(madsim))))]
pub(super) async fn stop_asked() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending().await
    }
}
