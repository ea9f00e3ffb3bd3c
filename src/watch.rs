//! A value that many wait for changes of: tokio's watch channel; in the simulation, one that wakes who waits in order.
//!
//! Tokio's spreads those who wait over several queues by a random number that no seed reaches (it counts the threads of the
//! process), so that a second run of the same seed in one process would take another course. The stand-in has the part of tokio's
//! interface that this crate uses, with the same meaning, and refuses to have more.

#[cfg(not(madsim))]
pub use tokio::sync::watch::{channel, Receiver, Sender};

#[cfg(madsim)]
pub use ordered::{channel, Receiver, Sender};

#[cfg(madsim)]
mod ordered {
    use std::ops::Deref;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
    use tokio::sync::Notify;

    /// The sender is gone.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Closed;

    #[derive(Debug)]
    struct Shared<T> {
        value: RwLock<T>,
        /// How often the value changed.
        version: AtomicU64,
        closed: AtomicBool,
        changed: Notify,
    }

    impl<T> Shared<T> {
        fn read(&self) -> RwLockReadGuard<'_, T> {
            self.value.read().unwrap_or_else(PoisonError::into_inner)
        }

        fn receiver(self: &Arc<Self>, seen: u64) -> Receiver<T> {
            Receiver { shared: self.clone(), seen }
        }
    }

    /// Changes the value. The only one of its channel.
    #[derive(Debug)]
    pub struct Sender<T> {
        shared: Arc<Shared<T>>,
    }

    /// Sees the value, and waits for its next change.
    #[derive(Debug)]
    pub struct Receiver<T> {
        shared: Arc<Shared<T>>,
        seen: u64,
    }

    /// The value, held while it is looked at.
    #[derive(Debug)]
    pub struct Ref<'a, T>(RwLockReadGuard<'a, T>);

    impl<T> Deref for Ref<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            &self.0
        }
    }

    /// A channel that holds `value`, which its receiver has seen.
    pub fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
        let sender = Sender::new(value);
        let receiver = sender.subscribe();
        (sender, receiver)
    }

    impl<T> Sender<T> {
        /// A channel that holds `value`, without a receiver yet.
        pub fn new(value: T) -> Sender<T> {
            let shared = Shared {
                value: RwLock::new(value),
                version: AtomicU64::new(0),
                closed: AtomicBool::new(false),
                changed: Notify::new(),
            };
            Sender { shared: Arc::new(shared) }
        }

        /// A receiver that has seen the present value.
        pub fn subscribe(&self) -> Receiver<T> {
            self.shared.receiver(self.shared.version.load(Ordering::Acquire))
        }

        /// Looks at the value.
        pub fn borrow(&self) -> Ref<'_, T> {
            Ref(self.shared.read())
        }

        /// Replaces the value and wakes who waits.
        pub fn send_replace(&self, value: T) -> T {
            let mut value = value;
            self.send_modify(|held| std::mem::swap(held, &mut value));
            value
        }

        /// Changes the value and wakes who waits.
        pub fn send_modify(&self, modify: impl FnOnce(&mut T)) {
            self.send_if_modified(|value| {
                modify(value);
                true
            });
        }

        /// Wakes who waits if `modify` says that it changed the value.
        pub fn send_if_modified(&self, modify: impl FnOnce(&mut T) -> bool) -> bool {
            let mut value = self.shared.value.write().unwrap_or_else(PoisonError::into_inner);
            if !modify(&mut value) {
                return false;
            }
            self.shared.version.fetch_add(1, Ordering::Release);
            drop(value);
            self.shared.changed.notify_waiters();
            true
        }
    }

    impl<T> Drop for Sender<T> {
        fn drop(&mut self) {
            self.shared.closed.store(true, Ordering::Release);
            self.shared.changed.notify_waiters();
        }
    }

    impl<T> Receiver<T> {
        /// Looks at the value.
        pub fn borrow(&self) -> Ref<'_, T> {
            Ref(self.shared.read())
        }

        /// Looks at the value, which counts as seen then.
        pub fn borrow_and_update(&mut self) -> Ref<'_, T> {
            let value = self.shared.read();
            self.seen = self.shared.version.load(Ordering::Acquire);
            Ref(value)
        }

        /// The present value counts as seen.
        pub fn mark_unchanged(&mut self) {
            self.seen = self.shared.version.load(Ordering::Acquire);
        }

        /// Waits until there is a value that was not seen; it counts as seen then.
        ///
        /// # Errors
        /// If there is none and the sender is gone.
        pub async fn changed(&mut self) -> Result<(), Closed> {
            loop {
                let changed = self.shared.changed.notified();
                let version = self.shared.version.load(Ordering::Acquire);
                if version != self.seen {
                    self.seen = version;
                    return Ok(());
                }
                if self.shared.closed.load(Ordering::Acquire) {
                    return Err(Closed);
                }
                changed.await;
            }
        }

        /// Waits until the value, which counts as seen then, is as wanted.
        ///
        /// # Errors
        /// If it is not and the sender is gone.
        pub async fn wait_for(&mut self, mut wanted: impl FnMut(&T) -> bool) -> Result<Ref<'_, T>, Closed> {
            loop {
                let closed = self.shared.closed.load(Ordering::Acquire);
                self.mark_unchanged();
                if wanted(&self.shared.read()) {
                    return Ok(Ref(self.shared.read()));
                }
                if closed || self.changed().await.is_err() {
                    return Err(Closed);
                }
            }
        }
    }

    impl<T> Clone for Receiver<T> {
        fn clone(&self) -> Receiver<T> {
            self.shared.receiver(self.seen)
        }
    }
}
