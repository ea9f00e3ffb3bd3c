//! The hash chain: each link commits to all before it.
//!
//! It makes tampering and rot visible, and repair safe: what a peer sends for a damaged range is right if it leads to the
//! same link.

use crate::ids::{Digest, LogIndex, Offset, Term};

/// Bytes that one link is the digest of.
const LINK_LEN: usize = 32 + 8 + 8 + 8 + 32;

/// The digest of a batch as it was proposed (offset and epoch zero).
#[must_use]
pub fn digest(data: &[u8]) -> Digest {
    Digest(*blake3::hash(data).as_bytes())
}

/// The link after `previous`: BLAKE3 over the previous link, index, term and first offset (little-endian), and the digest of
/// the data.
#[must_use]
pub fn chain_next(
    previous: Digest,
    index: LogIndex,
    term: Term,
    first_offset: Offset,
    digest_of_data: Digest,
) -> Digest {
    let mut link = [0u8; LINK_LEN];
    link[..32].copy_from_slice(&previous.0);
    link[32..40].copy_from_slice(&index.0.to_le_bytes());
    link[40..48].copy_from_slice(&term.0.to_le_bytes());
    link[48..56].copy_from_slice(&first_offset.0.to_le_bytes());
    link[56..].copy_from_slice(&digest_of_data.0);
    digest(&link)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_changes_with_everything_it_commits_to() {
        let link =
            |p: u8, i, t, o, d: u8| chain_next(Digest([p; 32]), LogIndex(i), Term(t), Offset(o), Digest([d; 32]));
        let one = link(0, 1, 2, 3, 4);
        assert_eq!(one, link(0, 1, 2, 3, 4));
        for other in
            [link(9, 1, 2, 3, 4), link(0, 9, 2, 3, 4), link(0, 1, 9, 3, 4), link(0, 1, 2, 9, 4), link(0, 1, 2, 3, 9)]
        {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn the_digest_of_nothing_is_blake3_s() {
        let published = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        assert_eq!(digest(b"").to_string(), published);
    }
}
