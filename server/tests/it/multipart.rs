//! Objects in parts.

use aws_sdk_s3::Client;
use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumMode, ChecksumType, CompletedMultipartUpload, CompletedPart};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use gpufeed_io::payload::Payloads;
use gpufeed_profiles::units::Bytes;
use gpufeed_server::{Config, StoreKind};
use md5::{Digest as _, Md5};
use s3s::crypto::{Checksum as _, Crc32};

use super::support::{BUCKET, bytes, client, config, refusal, refused, serve};

const PART: usize = 5 << 20;

async fn upload(client: &Client, id: &str, number: i32, body: &[u8]) -> CompletedPart {
    let part = client.upload_part().bucket(BUCKET).key("k").upload_id(id).part_number(number);
    let part = part.body(body.to_vec().into()).send().await.expect("part");
    CompletedPart::builder().part_number(number).set_e_tag(part.e_tag).build()
}

fn parts(parts: impl IntoIterator<Item = CompletedPart>) -> CompletedMultipartUpload {
    CompletedMultipartUpload::builder().set_parts(Some(parts.into_iter().collect())).build()
}

#[tokio::test]
async fn parts_become_an_object() {
    let server = serve(config());
    let client = client(&server);
    let start = client.create_multipart_upload().bucket(BUCKET).key("k").content_type("a/b").metadata("x", "y");
    let id = start.send().await.expect("start").upload_id.expect("an id");
    let body = bytes(2 * PART + 1000, 5);
    let pieces: Vec<_> = body.chunks(PART).collect();
    // Out of order, and one twice.
    upload(&client, &id, 1, b"to be replaced").await;
    let mut done = Vec::new();
    for number in [3, 1, 2] {
        done.push(upload(&client, &id, number, pieces[number as usize - 1]).await);
    }
    done.sort_by_key(|part| part.part_number);
    let listed = client.list_parts().bucket(BUCKET).key("k").upload_id(&id).max_parts(2).send().await.expect("list");
    assert_eq!((listed.parts().len(), listed.next_part_number_marker()), (2, Some("2")));
    let uploads = client.list_multipart_uploads().bucket(BUCKET).send().await.expect("list");
    assert_eq!(uploads.uploads()[0].upload_id(), Some(id.as_str()));
    assert_eq!(refusal(client.head_object().bucket(BUCKET).key("k").send().await).1, 404, "not there yet");

    let complete =
        |with| client.complete_multipart_upload().bucket(BUCKET).key("k").upload_id(&id).multipart_upload(with);
    let swapped = parts([done[1].clone(), done[0].clone()]);
    assert_eq!(refusal(complete(swapped).send().await), refused("InvalidPartOrder", 400));
    let wrong = CompletedPart::builder().part_number(1).e_tag("\"00\"").build();
    assert_eq!(refusal(complete(parts([wrong])).send().await), refused("InvalidPart", 400));
    let missing = CompletedPart::builder().part_number(9).e_tag("\"00\"").build();
    assert_eq!(refusal(complete(parts([missing])).send().await), refused("InvalidPart", 400));
    let whole = complete(parts(done)).if_none_match("*").send().await.expect("complete");
    let digests: Vec<u8> = pieces.iter().flat_map(Md5::digest).collect();
    let tag = format!("\"{}-3\"", hex::encode(Md5::digest(&digests)));
    assert_eq!(whole.e_tag(), Some(tag.as_str()));

    let got = client.get_object().bucket(BUCKET).key("k").send().await.expect("get");
    assert_eq!((got.content_type(), got.e_tag()), (Some("a/b"), Some(tag.as_str())));
    assert!(got.body.collect().await.expect("body").to_vec() == body);
    let across = format!("bytes={}-{}", PART - 10, PART + 9);
    let got = client.get_object().bucket(BUCKET).key("k").range(across).send().await.expect("get");
    assert_eq!(got.body.collect().await.expect("body").to_vec(), &body[PART - 10..PART + 10]);
    let third = client.get_object().bucket(BUCKET).key("k").part_number(3).send().await.expect("get");
    assert_eq!(third.parts_count(), Some(3));
    assert_eq!(third.body.collect().await.expect("body").to_vec(), pieces[2]);
    let again = client.abort_multipart_upload().bucket(BUCKET).key("k").upload_id(&id).send().await;
    assert_eq!(refusal(again), refused("NoSuchUpload", 404));
}

#[tokio::test]
async fn small_parts_and_aborted_uploads_are_refused() {
    let server = serve(config());
    let client = client(&server);
    let start = || client.create_multipart_upload().bucket(BUCKET).key("k").send();
    let id = start().await.expect("start").upload_id.expect("an id");
    let small = [upload(&client, &id, 1, b"small").await, upload(&client, &id, 2, b"last").await];
    let complete = client.complete_multipart_upload().bucket(BUCKET).key("k").upload_id(&id);
    let complete = complete.multipart_upload(parts(small)).send().await;
    assert_eq!(refusal(complete), refused("EntityTooSmall", 400));
    client.abort_multipart_upload().bucket(BUCKET).key("k").upload_id(&id).send().await.expect("abort");
    let part = client.upload_part().bucket(BUCKET).key("k").upload_id(&id).part_number(1).send().await;
    assert_eq!(refusal(part), refused("NoSuchUpload", 404));
    let id = start().await.expect("start").upload_id.expect("an id");
    let part = client.upload_part().bucket(BUCKET).key("k").upload_id(&id).part_number(10_001).send().await;
    assert_eq!(refusal(part), refused("InvalidArgument", 400));
}

#[tokio::test]
async fn checksums_of_parts_and_of_the_whole() {
    let server = serve(config());
    let client = client(&server);
    let body = bytes(PART + 10, 8);
    let crc = |bytes: &[u8]| BASE64.encode(Crc32::checksum(bytes));
    let of_parts: Vec<u8> = body.chunks(PART).flat_map(Crc32::checksum).collect();
    for (kind, expected) in
        [(ChecksumType::FullObject, crc(&body)), (ChecksumType::Composite, format!("{}-2", crc(&of_parts)))]
    {
        let start = client.create_multipart_upload().bucket(BUCKET).key("k").checksum_type(kind.clone());
        let start = start.checksum_algorithm(ChecksumAlgorithm::Crc32).send().await.expect("start");
        let id = start.upload_id.expect("an id");
        let mut done = Vec::new();
        for (number, piece) in (1..).zip(body.chunks(PART)) {
            done.push(upload(&client, &id, number, piece).await);
        }
        let complete = client.complete_multipart_upload().bucket(BUCKET).key("k").upload_id(&id);
        let complete = complete.multipart_upload(parts(done)).send().await.expect("complete");
        assert_eq!(complete.checksum_crc32(), Some(expected.as_str()));
        let head = client.head_object().bucket(BUCKET).key("k").checksum_mode(ChecksumMode::Enabled).send().await;
        let head = head.expect("head");
        assert_eq!((head.checksum_crc32(), head.checksum_type()), (Some(expected.as_str()), Some(&kind)));
    }
}

#[tokio::test]
async fn synth_recognizes_payload_in_parts_in_any_order() {
    let store = StoreKind::Synth { seed: 7, capacity: Bytes(12 << 20) };
    let server = serve(Config { store, ..config() });
    let client = client(&server);
    let payload = Payloads::new(7).of("k");
    let mut body = vec![0; 4 * PART + 12_345];
    payload.fill(0, &mut body);
    let start = client.create_multipart_upload().bucket(BUCKET).key("k").send().await.expect("start");
    let id = start.upload_id.expect("an id");
    let pieces: Vec<_> = body.chunks(PART).collect();
    let mut done = Vec::new();
    for number in [5, 4, 3, 2, 1] {
        done.push(upload(&client, &id, number, pieces[number as usize - 1]).await);
    }
    done.reverse();
    let complete = client.complete_multipart_upload().bucket(BUCKET).key("k").upload_id(&id);
    complete.multipart_upload(parts(done)).send().await.expect("complete");
    let got = client.get_object().bucket(BUCKET).key("k").send().await.expect("get");
    assert!(got.body.collect().await.expect("body").to_vec() == body);
    // Nothing of it is held: as much again fits as ever did.
    let rest = client.put_object().bucket(BUCKET).key("rest").body(bytes(12 << 20, 1).into()).send().await;
    rest.expect("the capacity is free");
}

#[tokio::test]
async fn parts_can_be_copied() {
    let server = serve(config());
    let client = client(&server);
    let body = bytes(PART + 5000, 2);
    client.put_object().bucket(BUCKET).key("from").body(body.clone().into()).send().await.expect("put");
    let start = client.create_multipart_upload().bucket(BUCKET).key("k").send().await.expect("start");
    let id = start.upload_id.expect("an id");
    let mut done = Vec::new();
    for (number, range) in [(1, format!("bytes=0-{}", PART - 1)), (2, format!("bytes={PART}-{}", PART + 4999))] {
        let copy = client.upload_part_copy().bucket(BUCKET).key("k").upload_id(&id).part_number(number);
        let copy = copy.copy_source(format!("{BUCKET}/from")).copy_source_range(range).send().await.expect("copy");
        let tag = copy.copy_part_result.and_then(|result| result.e_tag);
        done.push(CompletedPart::builder().part_number(number).set_e_tag(tag).build());
    }
    let complete = client.complete_multipart_upload().bucket(BUCKET).key("k").upload_id(&id);
    complete.multipart_upload(parts(done)).send().await.expect("complete");
    let got = client.get_object().bucket(BUCKET).key("k").send().await.expect("get");
    assert!(got.body.collect().await.expect("body").to_vec() == body);
}
