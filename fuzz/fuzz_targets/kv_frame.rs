//! Bytes that may be of the KV block protocol: what reads is within the limits and reads the same once written again, and
//! no stranger's frame is believed.
#![no_main]

use gpufeed_wire::frame::{HEADER_BYTES, Header, Opener};
use gpufeed_wire::greeting::{Hello, PROOF_BYTES, Session, Side, WELCOME_BYTES, Welcome};
use gpufeed_wire::keys::{Keys, read_key, write_key, write_keys};
use gpufeed_wire::{Limits, Status};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(hello) = Hello::decode(bytes) {
        assert_eq!(hello.encode().expect("what was read can be written"), bytes);
    }
    if let Ok(Some(length)) = Hello::length(bytes) {
        assert!(length >= 52 && length <= 48 + 128 + 63);
    }
    let mut again = Vec::new();
    if let Ok(key) = read_key(bytes) {
        write_key(key, &mut again).expect("what was read can be written");
        assert_eq!(again, bytes);
    }
    if let Ok(keys) = Keys::read(bytes) {
        again.clear();
        assert_eq!(keys.len(), keys.clone().count());
        write_keys(keys, &mut again).expect("what was read can be written");
        assert_eq!(again, bytes);
    }
    let session = Session::new(b"secret", b"hello", &[0; WELCOME_BYTES]);
    if let Some(welcome) = bytes.first_chunk::<WELCOME_BYTES>()
        && let Ok(read) = Welcome::decode(welcome)
    {
        assert_eq!(read.encode(), *welcome);
    }
    if let Some(proof) = bytes.first_chunk::<PROOF_BYTES>() {
        assert!(session.check(Side::Client, proof).is_err() && session.check(Side::Server, proof).is_err());
    }
    if let Some((head, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() {
        let limits = Limits::default();
        if let Ok((meta, payload)) = Opener::follows(head, &limits) {
            assert!(meta <= limits.meta_bytes as usize && payload <= limits.block_bytes);
        }
        let (mut seal, mut open) = session.channel(Side::Client);
        assert_eq!(open.open(head, rest), Err(Status::Forged));
        if let Ok(header) = Header::decode(head) {
            let meta = &rest[..rest.len().min(header.meta_bytes as usize)];
            let header = Header { meta_bytes: meta.len() as u32, ..header };
            assert_eq!(Header::decode(&seal.seal(&header, meta)), Ok(header));
        }
    }
});
