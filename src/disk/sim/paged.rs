//! File contents of the simulated disk, in pages that copies share until one of them writes.
//!
//! A simulated file has live and durable bytes, and tests copy whole disks at every operation; sharing makes both
//! cheap. A page of zeros takes no memory.

use bytes::{Bytes, BytesMut};
use std::sync::Arc;

const PAGE: usize = 4_096;

/// A sequence of bytes; a clone shares its pages.
#[derive(Clone, Default)]
pub(super) struct Paged {
    len: u64,
    /// `None` reads as zeros. Invariant: bytes at or past `len` are zero, so that growing again shows no old ones.
    pages: Vec<Option<Arc<[u8; PAGE]>>>,
}

impl Paged {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Cuts, or extends with zeros.
    pub(super) fn set_len(&mut self, len: u64) {
        if len < self.len {
            let inside = (len % PAGE as u64) as usize;
            self.pages.truncate(len.div_ceil(PAGE as u64) as usize);
            if let Some(Some(page)) = self.pages.last_mut().filter(|_| inside > 0) {
                Arc::make_mut(page)[inside..].fill(0);
            }
        }
        self.len = len;
        self.pages.resize(len.div_ceil(PAGE as u64) as usize, None);
    }

    /// Writes `bytes` at `position`, extending if it must.
    pub(super) fn write(&mut self, position: u64, mut bytes: &[u8]) {
        let end = position + bytes.len() as u64;
        if end > self.len {
            self.set_len(end);
        }
        let mut at = position;
        while !bytes.is_empty() {
            let (index, inside) = ((at / PAGE as u64) as usize, (at % PAGE as u64) as usize);
            let piece = bytes.len().min(PAGE - inside);
            let page = self.pages[index].get_or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(page)[inside..inside + piece].copy_from_slice(&bytes[..piece]);
            at += piece as u64;
            bytes = &bytes[piece..];
        }
    }

    /// Writes zeros over a range, extending if it must; whole pages give their memory back.
    pub(super) fn zero(&mut self, position: u64, len: u64) {
        let end = position + len;
        if end > self.len {
            self.set_len(end);
        }
        let mut at = position;
        while at < end {
            let (index, inside) = ((at / PAGE as u64) as usize, (at % PAGE as u64) as usize);
            let piece = (end - at).min((PAGE - inside) as u64) as usize;
            if piece == PAGE {
                self.pages[index] = None;
            } else if let Some(page) = &mut self.pages[index] {
                Arc::make_mut(page)[inside..inside + piece].fill(0);
            }
            at += piece as u64;
        }
    }

    /// Up to `len` bytes from `position`; fewer only at the end.
    pub(super) fn read(&self, position: u64, len: usize) -> Bytes {
        let end = position.saturating_add(len as u64).min(self.len);
        let mut out = BytesMut::with_capacity(end.saturating_sub(position) as usize);
        let mut at = position;
        while at < end {
            let (index, inside) = ((at / PAGE as u64) as usize, (at % PAGE as u64) as usize);
            let piece = (end - at).min((PAGE - inside) as u64) as usize;
            match &self.pages[index] {
                Some(page) => out.extend_from_slice(&page[inside..inside + piece]),
                None => out.resize(out.len() + piece, 0),
            }
            at += piece as u64;
        }
        out.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_cut_bytes_come_back_as_zeros() {
        let mut paged = Paged::default();
        paged.write(4_090, b"across a page's edge");
        let copy = paged.clone();
        assert_eq!(paged.len(), 4_110);
        assert_eq!(&paged.read(4_090, 100)[..], b"across a page's edge");
        paged.set_len(4_100);
        paged.set_len(4_110);
        assert_eq!(&paged.read(4_090, 100)[..], b"across a p\0\0\0\0\0\0\0\0\0\0");
        paged.zero(0, 8_192);
        assert_eq!(paged.len(), 8_192);
        assert!(paged.read(0, 10_000).iter().all(|byte| *byte == 0));
        assert_eq!(&copy.read(4_090, 100)[..], b"across a page's edge");
    }
}
