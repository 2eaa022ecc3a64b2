use proptest::prelude::*;

use crate::frame::{Flags, HEADER_BYTES, Header, Opener, Operation, hash};
use crate::greeting::{Hello, Session, Side, Welcome, refusal};
use crate::keys::{Keys, range, range_argument, read_key, write_key, write_keys};
use crate::{Limits, Malformed, Status, VERSION};

const HELLO: Hello<'_> = Hello { versions: (1, 1), nonce: [7; 32], access_key: "reader", bucket: "blocks" };

fn welcome() -> Welcome {
    Welcome { version: VERSION, status: Status::Ok, session: 3, nonce: [9; 32], limits: Limits::default() }
}

fn session(secret: &[u8]) -> Session {
    Session::new(secret, &HELLO.encode().expect("valid"), &welcome().encode())
}

#[test]
fn a_greeting_ends_in_two_channels_that_understand_each_other() {
    let (client, server) = (session(b"secret"), session(b"secret"));
    assert_eq!(server.check(Side::Client, &client.proof(Side::Client)), Ok(()));
    assert_eq!(client.check(Side::Server, &server.proof(Side::Server)), Ok(()));
    let ((mut seal, mut open), (mut answer, mut hear)) = (client.channel(Side::Client), server.channel(Side::Server));
    for request in 0..3 {
        let header = Header::request(Operation::Ping, request, 0);
        assert_eq!(hear.open(&seal.seal(&header, b""), b""), Ok(header));
        let back = header.answer(Status::Ok);
        assert_eq!(open.open(&answer.seal(&back, b""), b""), Ok(back));
    }
}

#[test]
fn another_secret_proves_nothing() {
    let (client, server) = (session(b"guess"), session(b"secret"));
    assert_eq!(server.check(Side::Client, &client.proof(Side::Client)), Err(Status::Unauthorized));
    // A proof of the other side is not taken for one's own: it cannot be sent back.
    assert_eq!(server.check(Side::Client, &server.proof(Side::Server)), Err(Status::BadRequest));
    let mut echoed = server.proof(Side::Server);
    echoed[4] = 3;
    assert_eq!(server.check(Side::Client, &echoed), Err(Status::Unauthorized));
    assert_eq!(server.check(Side::Server, &refusal(Status::Forbidden)), Err(Status::Forbidden));
}

#[test]
fn every_byte_said_is_in_the_session() {
    let hello = HELLO.encode().expect("valid");
    let proof = session(b"secret").proof(Side::Client);
    for at in 0..hello.len() {
        let mut other = hello.clone();
        other[at] ^= 1;
        let changed = Session::new(b"secret", &other, &welcome().encode());
        assert_eq!(changed.check(Side::Client, &proof), Err(Status::Unauthorized), "byte {at}");
    }
}

/// Computed with Python's hmac and hashlib from the text of PROTOCOL.md.
#[test]
fn what_the_text_says_is_what_the_code_does() {
    let session = session(b"secret");
    assert_eq!(hex::encode(&session.proof(Side::Client)[8..]), PROOF);
    let (mut seal, _) = session.channel(Side::Client);
    let mut meta = Vec::new();
    write_key("a/b", &mut meta).expect("a key");
    let header = Header { flags: Flags::IF_ABSENT, ..Header::request(Operation::Put, 5, 5) }.carrying(b"payload");
    assert_eq!(hex::encode(seal.seal(&header, &meta)), FRAME);
}

const PROOF: &str = "8a215177b9af7e1732625b4ccb2be7b279969c24ad105a136b65fdc6b23f2b85";
const FRAME: &str = "0308000005000000050000000000000000000000000000000700000000000000e5e43cf1bbf813960000000000000000d5a71f81040a7a27f78bc3cb5c99e5a1";

#[test]
fn a_frame_played_again_or_left_out_is_noticed() {
    let (client, server) = (session(b"secret"), session(b"secret"));
    let ((mut seal, _), (_, mut hear)) = (client.channel(Side::Client), server.channel(Side::Server));
    let header = Header::request(Operation::Ping, 1, 0);
    let [first, second, third] = [0, 1, 2].map(|_| seal.seal(&header, b""));
    assert!(hear.clone().open(&second, b"").is_err_and(|status| status == Status::Replayed));
    assert!(hear.open(&first, b"").is_ok());
    assert_eq!(hear.clone().open(&first, b""), Err(Status::Replayed));
    assert_eq!(hear.clone().open(&third, b""), Err(Status::Replayed));
    assert!(hear.open(&second, b"").is_ok());
    // A frame of the other direction is a forgery here.
    let (mut back, _) = server.channel(Side::Server);
    assert_eq!(hear.open(&back.seal(&header, b""), b""), Err(Status::Forged));
}

#[test]
fn limits_are_looked_at_before_anything_is_reserved() {
    let (mut seal, _) = session(b"secret").channel(Side::Client);
    let limits = Limits { block_bytes: 4096, meta_bytes: 16, ..Limits::default() };
    let header = Header { payload_bytes: 4096, payload_hash: 1, ..Header::request(Operation::Put, 0, 3) };
    assert_eq!(Opener::follows(&seal.seal(&header, b"abc"), &limits), Ok((3, 4096)));
    let larger = Header { payload_bytes: 4097, ..header };
    assert_eq!(Opener::follows(&seal.seal(&larger, b"abc"), &limits), Err(Status::TooLarge));
    assert_eq!(Opener::follows(&[0xff; HEADER_BYTES], &limits), Err(Status::TooLarge));
}

#[test]
fn a_welcome_that_allows_nothing_or_too_much_is_refused() {
    let wrong = |limits| Welcome { limits, ..welcome() }.encode();
    let good = Limits::default();
    for limits in [
        Limits { requests: 0, ..good },
        Limits { meta_bytes: crate::META_BYTES + 1, ..good },
        Limits { block_bytes: crate::BLOCK_BYTES + 1, ..good },
        Limits { window_bytes: good.block_bytes - 1, ..good },
    ] {
        assert_eq!(Welcome::decode(&wrong(limits)), Err(Malformed("limits")), "{limits:?}");
    }
    assert_eq!(Welcome::decode(&welcome().encode()), Ok(welcome()));
}

#[test]
fn versions_meet_or_do_not() {
    assert_eq!(HELLO.version(), Some(1));
    assert_eq!(Hello { versions: (1, 9), ..HELLO }.version(), Some(1));
    assert_eq!(Hello { versions: (2, 9), ..HELLO }.version(), None);
    let backwards = Hello { versions: (2, 1), ..HELLO }.encode().expect("names are valid");
    assert_eq!(Hello::decode(&backwards), Err(Malformed("versions")));
}

proptest! {
    #[test]
    fn a_hello_reads_back(low in 1u8.., more in 0u8..9, nonce: [u8; 32], access in "[!-~]{1,128}", bucket in "[a-z0-9.-]{3,63}") {
        let hello = Hello { versions: (low, low.saturating_add(more)), nonce, access_key: &access, bucket: &bucket };
        let bytes = hello.encode().expect("valid");
        prop_assert_eq!(Hello::decode(&bytes), Ok(hello));
        for end in 0..bytes.len() {
            prop_assert!(Hello::decode(&bytes[..end]).is_err());
            prop_assert!(Hello::length(&bytes[..end]).is_ok_and(|length| length.is_none_or(|n| n == bytes.len())));
        }
    }

    #[test]
    fn a_header_reads_back_and_no_bit_of_it_can_change(
        operation in 0usize..8, flags in 0u8..16, status in 0usize..15, request: u64, payload: Vec<u8>, argument: u64,
        meta in prop::collection::vec(any::<u8>(), 0..200), bit in 0usize..(HEADER_BYTES + 200) * 8,
    ) {
        let set = |flag: Flags, on: u8| if flags & on == 0 { Flags::default() } else { flag };
        let header = Header {
            flags: set(Flags::MORE, 1).with(set(Flags::ANSWER, 2)).with(set(Flags::LEASE, 4)).with(set(Flags::IF_ABSENT, 8)),
            status: Status::ALL[status],
            argument,
            ..Header::request(Operation::ALL[operation], request, meta.len() as u32).carrying(&payload)
        };
        prop_assert!(header.holds(&payload));
        let session = session(b"secret");
        let ((mut seal, _), (_, mut hear)) = (session.channel(Side::Client), session.channel(Side::Server));
        let bytes = seal.seal(&header, &meta);
        prop_assert_eq!(hear.clone().open(&bytes, &meta), Ok(header));
        let (mut bytes, mut meta) = (bytes, meta);
        let bit = bit % ((HEADER_BYTES + meta.len()) * 8);
        if bit / 8 < HEADER_BYTES { bytes[bit / 8] ^= 1 << (bit % 8) } else { meta[bit / 8 - HEADER_BYTES] ^= 1 << (bit % 8) }
        prop_assert_eq!(hear.open(&bytes, &meta), Err(Status::Forged));
    }

    #[test]
    fn keys_read_back(keys in prop::collection::vec("\\PC{1,40}", 1..50)) {
        let mut meta = Vec::new();
        write_keys(keys.iter().map(String::as_str), &mut meta).expect("valid");
        prop_assert_eq!(Keys::read(&meta).expect("whole").collect::<Vec<_>>(), keys);
        meta.push(0);
        prop_assert!(Keys::read(&meta).is_err());
        meta.truncate(meta.len() - 2);
        prop_assert!(Keys::read(&meta).is_err());
    }

    #[test]
    fn any_bytes_are_answered_not_panicked_at(bytes: Vec<u8>) {
        let _ = Hello::length(&bytes);
        let _ = Hello::decode(&bytes);
        let _ = read_key(&bytes);
        let _ = Keys::read(&bytes).map(Iterator::count);
        if let Some(header) = bytes.first_chunk::<HEADER_BYTES>() {
            let _ = Opener::follows(header, &Limits::default());
            let _ = Header::decode(header);
        }
    }

    #[test]
    fn ranges_read_back(first: u32, bytes: u32) {
        let expected = (u64::from(first), (bytes > 0).then_some(u64::from(bytes)));
        prop_assert_eq!(range(range_argument(first, bytes)), expected);
    }

    #[test]
    fn a_changed_payload_has_another_hash(mut payload in prop::collection::vec(any::<u8>(), 1..5000), at: prop::sample::Index) {
        let was = hash(&payload);
        let at = at.index(payload.len());
        payload[at] ^= 0x10;
        prop_assert_ne!(hash(&payload), was);
    }
}
