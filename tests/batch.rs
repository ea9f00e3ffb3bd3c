//! Record batches: golden bytes, the door's refusals, and mutation of good batches.

use balsa::batch::{
    peek, records, stamp, unstamp, validate, validate_stamped, BatchBuilder, BatchError, BatchHeader, BatchProducer,
    Record, RecordRef,
};
use balsa::ids::{Offset, ProducerId, Term, TimestampMs};
use balsa::limits::{BATCH_BYTES_MAX, BATCH_RECORDS_MAX, RECORD_HEADERS_MAX, RECORD_KEY_BYTES_MAX};
use bytes::{Bytes, BytesMut};
use rand::{Rng, SeedableRng};

/// One record, key "k", value "hello", no session. Assembled by hand; the checksum comes from a bitwise CRC-32C written for
/// this and held against batches of a real Kafka broker.
const ONE_RECORD: &str = concat!(
    "0000000000000000", // base offset
    "0000003e",         // 62 bytes follow
    "00000000",         // leader epoch
    "02",               // magic
    "36ff4dc3",         // crc
    "0000",             // attributes
    "00000000",         // last offset delta
    "0000018bcfe56800", // base timestamp: 1_700_000_000_000
    "0000018bcfe56800", // max timestamp
    "ffffffffffffffff", // producer id
    "ffff",             // producer epoch
    "ffffffff",         // base sequence
    "00000001",         // records
    "18",               // record of 12 bytes
    "00",               // attributes
    "00",               // timestamp delta
    "00",               // offset delta
    "026b",             // key
    "0a68656c6c6f",     // value
    "00",               // headers
);

/// Three records in a session: an empty value; a null value with two headers; a timestamp before the first one's.
const THREE_RECORDS: &str = concat!(
    "0000000000000000",
    "00000054",
    "00000000",
    "02",
    "ae4aa26f",
    "0000",
    "00000002",
    "0000018bcfe56800",
    "0000018bcfe568c8",
    "0000000000000007", // producer 7
    "0002",             // epoch 2
    "00000028",         // sequence 40
    "00000003",
    "0c00000001",       // null key,
    "0000",             // empty value, no headers
    "22009003",         // 17 bytes, 200 ms later,
    "02066b657901",     // offset delta 1, key "key", null value,
    "0402680276026e01", // headers h=v and n=null
    "12000104",         // 9 bytes, 1 ms earlier, offset delta 2,
    "000678787800",     // empty key, value "xxx", no headers
);

fn bytes_of(hex: &str) -> Bytes {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn resealed(mut batch: BytesMut) -> Bytes {
    let len = (batch.len() - 12) as i32;
    batch[8..12].copy_from_slice(&len.to_be_bytes());
    let crc = crc32c::crc32c(&batch[21..]);
    batch[17..21].copy_from_slice(&crc.to_be_bytes());
    batch.freeze()
}

fn changed(batch: &Bytes, change: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut copy = BytesMut::from(&batch[..]);
    change(&mut copy);
    resealed(copy)
}

fn record(value: &[u8]) -> RecordRef<'_> {
    RecordRef { value: Some(value), ..RecordRef::default() }
}

#[test]
fn one_record_has_the_golden_bytes_both_ways() {
    let mut builder = BatchBuilder::new();
    let timestamp = TimestampMs(1_700_000_000_000);
    builder.push(RecordRef { key: Some(b"k"), value: Some(b"hello"), headers: &[], timestamp }).unwrap();
    let batch = builder.build();
    assert_eq!(batch, bytes_of(ONE_RECORD));

    let summary = validate(&batch, BATCH_BYTES_MAX).unwrap();
    assert_eq!((summary.count, summary.producer(), summary.max_timestamp), (1, None, timestamp));
    let all: Vec<Record> = records(&batch).collect();
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].key.as_deref(), Some(&b"k"[..]));
    assert_eq!(all[0].value.as_deref(), Some(&b"hello"[..]));
    assert_eq!((all[0].offset, all[0].timestamp), (Offset(0), timestamp));
}

#[test]
fn nulls_headers_and_a_session_have_the_golden_bytes_both_ways() {
    let headers: [(&str, Option<&[u8]>); 2] = [("h", Some(b"v")), ("n", None)];
    let at = |ms: u64| TimestampMs(1_700_000_000_000 + ms);
    let mut builder = BatchBuilder::new();
    builder.producer(ProducerId(7), 2, 40);
    builder.push(RecordRef { key: None, value: Some(b""), headers: &[], timestamp: at(0) }).unwrap();
    builder.push(RecordRef { key: Some(b"key"), value: None, headers: &headers, timestamp: at(200) }).unwrap();
    let earlier = TimestampMs(at(0).0 - 1);
    builder.push(RecordRef { key: Some(b""), value: Some(b"xxx"), headers: &[], timestamp: earlier }).unwrap();
    let batch = builder.build();
    assert_eq!(batch, bytes_of(THREE_RECORDS));

    let summary = validate(&batch, BATCH_BYTES_MAX).unwrap();
    let producer = BatchProducer { id: ProducerId(7), epoch: 2, base_sequence: 40 };
    assert_eq!((summary.count, summary.producer(), summary.max_timestamp), (3, Some(producer), at(200)));
    assert_eq!(peek(&batch), Some(summary));
    let all: Vec<Record> = records(&batch).collect();
    assert_eq!((all[0].key.clone(), all[0].value.clone()), (None, Some(Bytes::new())));
    assert_eq!((all[1].value.clone(), all[1].timestamp), (None, at(200)));
    let read: Vec<(String, Option<Bytes>)> =
        all[1].headers.clone().map(|header| (header.key_text().to_owned(), header.value)).collect();
    assert_eq!(read, [("h".to_owned(), Some(Bytes::from_static(b"v"))), ("n".to_owned(), None)]);
    assert_eq!((all[2].key.clone(), all[2].timestamp, all[2].offset), (Some(Bytes::new()), earlier, Offset(2)));
}

#[test]
fn records_are_slices_of_their_batch() {
    let batch = bytes_of(ONE_RECORD);
    let inside = batch.as_ptr_range();
    let value = records(&batch).next().and_then(|record| record.value).unwrap();
    assert!(inside.contains(&value.as_ptr()));
}

#[test]
fn a_stamp_changes_offset_and_epoch_only_and_comes_off_again() {
    let sent = bytes_of(THREE_RECORDS);
    let mut batch = BytesMut::from(&sent[..]);
    stamp(&mut batch, Offset(1_000), Term(9));
    let stamped = Bytes::copy_from_slice(&batch);
    assert_eq!(validate(&stamped, BATCH_BYTES_MAX), Err(BatchError::OffsetNotZero { offset: 1_000 }));
    assert_eq!(validate_stamped(&stamped, BATCH_BYTES_MAX).unwrap().base_offset, Offset(1_000));
    assert_eq!(BatchHeader::decode(&stamped).unwrap().leader_epoch, 9);
    assert_eq!(records(&stamped).map(|record| record.offset.0).collect::<Vec<_>>(), [1_000, 1_001, 1_002]);
    unstamp(&mut batch);
    assert_eq!(batch.freeze(), sent);
}

#[test]
fn the_builder_knows_sizes_in_advance() {
    let mut rng = rand::rngs::StdRng::seed_from_u64(1);
    let filler = vec![7u8; 20_000];
    let mut builder = BatchBuilder::new();
    for number in 0..300 {
        let headers: Vec<(&str, Option<&[u8]>)> =
            (0..rng.gen_range(0..4)).map(|i| ("name", (i % 2 == 0).then_some(&filler[..i * 40]))).collect();
        let key = rng.gen_bool(0.5).then(|| &filler[..rng.gen_range(0..200)]);
        let value = rng.gen_bool(0.9).then(|| &filler[..rng.gen_range(0..20_000)]);
        let timestamp = TimestampMs(rng.gen_range(0..1 << 45));
        let next = RecordRef { key, value, headers: &headers, timestamp };
        let expected = builder.bytes_with(&next);
        builder.push(next).unwrap();
        assert_eq!((builder.bytes(), builder.len()), (expected, number + 1));
    }
    let len = builder.bytes();
    let batch = builder.build();
    assert_eq!(batch.len(), len);
    assert_eq!(validate(&batch, len).unwrap().count, 300);
    assert_eq!(validate(&batch, len - 1), Err(BatchError::TooLong { len, max: len - 1 }));
}

#[test]
fn the_door_refuses_with_the_kind_and_the_numbers() {
    let good = bytes_of(ONE_RECORD);
    let check = |batch: &Bytes| validate(batch, BATCH_BYTES_MAX).unwrap_err();
    assert_eq!(check(&good.slice(..60)), BatchError::TooShort { len: 60, min: 61 });
    assert_eq!(check(&good.slice(..73)), BatchError::LengthWrong { said: 74, len: 73 });
    let mut flipped = BytesMut::from(&good[..]);
    flipped[70] ^= 1;
    assert!(matches!(check(&flipped.freeze()), BatchError::ChecksumWrong { said: 0x36ff_4dc3, .. }));
    assert_eq!(check(&changed(&good, |b| b[16] = 1)), BatchError::MagicUnknown { magic: 1 });
    assert_eq!(check(&changed(&good, |b| b[15] = 3)), BatchError::EpochNotZero { epoch: 3 });
    assert_eq!(check(&changed(&good, |b| b[22] = 4)), BatchError::Compressed { codec: 4 });
    assert_eq!(check(&changed(&good, |b| b[22] = 0x10)), BatchError::Transactional);
    assert_eq!(check(&changed(&good, |b| b[22] = 0x30)), BatchError::Control);
    assert_eq!(check(&changed(&good, |b| b[22] = 0x08)), BatchError::AttributesUnknown { attributes: 8 });
    let max = BATCH_RECORDS_MAX;
    assert_eq!(check(&changed(&good, |b| b[60] = 0)), BatchError::RecordsCount { count: 0, max });
    let negative = changed(&good, |b| b[57..61].fill(0xff));
    assert_eq!(check(&negative), BatchError::RecordsCount { count: -1, max });
    let two = changed(&good, |b| b[60] = 2);
    assert_eq!(check(&two), BatchError::CountDiffersFromDelta { count: 2, last_offset_delta: 0, expected: 1 });
    assert_eq!(check(&changed(&good, |b| b[27..35].fill(0xff))), BatchError::TimestampNegative { timestamp: -1 });
    let half = changed(&good, |b| b[43..51].fill(0));
    assert_eq!(check(&half), BatchError::ProducerIncomplete { id: 0, epoch: -1, sequence: -1 });
    assert_eq!(check(&changed(&good, |b| b[62] = 1)), BatchError::RecordAttributes { number: 0, attributes: 1 });
    assert_eq!(check(&changed(&good, |b| b[64] = 2)), BatchError::OffsetDeltaWrong { number: 0, delta: 1 });
    assert_eq!(check(&changed(&good, |b| b.extend_from_slice(b"x"))), BatchError::BytesLeft { len: 1 });
    assert_eq!(check(&changed(&good, |b| b[61] = 0x7e)), BatchError::RecordBroken { number: 0, what: "length" });
    let shown = validate(&good, 10).unwrap_err().to_string();
    assert_eq!(shown, "batch is 74 bytes; at most 10 are allowed");
}

#[test]
fn a_count_far_beyond_the_bytes_is_refused_without_walking_or_memory() {
    let claims = changed(&bytes_of(ONE_RECORD), |b| {
        b[57..61].copy_from_slice(&(BATCH_RECORDS_MAX as i32).to_be_bytes());
        b[23..27].copy_from_slice(&(BATCH_RECORDS_MAX as i32 - 1).to_be_bytes());
    });
    assert_eq!(validate(&claims, BATCH_BYTES_MAX), Err(BatchError::RecordBroken { number: 1, what: "length" }));
}

#[test]
fn the_limits_of_records_hold_at_the_builder_and_at_the_door() {
    let key = vec![0u8; RECORD_KEY_BYTES_MAX + 1];
    let mut builder = BatchBuilder::new();
    let long = RecordRef { key: Some(&key), ..record(b"") };
    assert_eq!(
        builder.push(long),
        Err(BatchError::KeyTooLong { number: 0, len: key.len(), max: RECORD_KEY_BYTES_MAX })
    );
    let headers: Vec<(&str, Option<&[u8]>)> = vec![("", None); RECORD_HEADERS_MAX + 1];
    let many = RecordRef { headers: &headers, ..record(b"") };
    assert!(matches!(builder.push(many), Err(BatchError::HeadersTooMany { count: 1_001, max: 1_000, .. })));
    assert!(builder.is_empty());

    let allowed = RecordRef { key: Some(&key[1..]), headers: &headers[1..], ..record(b"") };
    builder.push(allowed).unwrap();
    assert!(validate(&builder.build(), BATCH_BYTES_MAX).is_ok());
    let mut full = BatchBuilder::new();
    (0..BATCH_RECORDS_MAX).for_each(|_| full.push(record(b"")).unwrap());
    assert!(matches!(full.push(record(b"")), Err(BatchError::RecordsCount { count: 100_001, max: 100_000 })));
    assert_eq!(validate(&full.build(), BATCH_BYTES_MAX).unwrap().count as usize, BATCH_RECORDS_MAX);
}

/// Whatever happens to a good batch's bytes, the check answers, and what passes it can be read in full.
#[test]
fn no_bytes_make_the_check_or_the_reader_panic() {
    for seed in 0..20_000u64 {
        let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
        let mut batch = BytesMut::from(&bytes_of(if seed % 2 == 0 { ONE_RECORD } else { THREE_RECORDS })[..]);
        for _ in 0..rng.gen_range(1..4) {
            let at = rng.gen_range(0..batch.len());
            match rng.gen_range(0..4) {
                0 => batch[at] ^= 1 << rng.gen_range(0..8),
                1 => batch[at] = [0x00, 0x7f, 0x80, 0xff][rng.gen_range(0..4)],
                2 => batch.truncate(at.max(1)),
                _ => batch.extend_from_slice(&[rng.gen(), rng.gen(), rng.gen()]),
            }
        }
        let seal = rng.gen_bool(0.8) && batch.len() >= 21;
        let batch = if seal { resealed(batch) } else { batch.freeze() };
        let read = records(&batch).inspect(|record| _ = record.headers.clone().count()).count();
        if let Ok(summary) = validate_stamped(&batch, BATCH_BYTES_MAX) {
            assert_eq!(read, summary.count as usize, "seed {seed}");
        }
        _ = peek(&batch);
    }
}
