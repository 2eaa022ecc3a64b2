//! Objects go in and come out.

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumMode, Delete, MetadataDirective, ObjectIdentifier};
use gpufeed_io::payload::Payloads;
use gpufeed_profiles::units::Bytes;
use gpufeed_server::{Config, EtagKind, StoreKind};
use md5::{Digest as _, Md5};

use super::support::{BUCKET, bytes, client, config, refusal, refused, serve};

#[tokio::test]
async fn odd_keys_come_back_as_they_were() {
    let server = serve(config());
    let client = client(&server);
    let longest = "k".repeat(1024);
    let keys = [
        "plain",
        "/lead",
        "a//b",
        "trail/",
        "sp ace",
        "plus+",
        "per%20cent%",
        "é/漢字/🦀",
        "q?x=1&y#z",
        "~._-!*'()",
        "a=b;c:d@e,f$g",
        "..",
        "a/../b",
        "<&>\"",
        longest.as_str(),
    ];
    for (i, key) in keys.iter().enumerate() {
        let body = bytes(100 + i, i as u8);
        client.put_object().bucket(BUCKET).key(*key).body(body.clone().into()).send().await.expect(key);
        let got = client.get_object().bucket(BUCKET).key(*key).send().await.expect(key);
        assert_eq!(got.body.collect().await.expect(key).to_vec(), body, "{key}");
    }
    let listed = client.list_objects_v2().bucket(BUCKET).send().await.expect("list");
    let mut names: Vec<_> = listed.contents().iter().filter_map(|object| object.key()).collect();
    names.sort_unstable();
    let mut expected = keys.to_vec();
    expected.sort_unstable();
    assert_eq!(names, expected);
    let long = client.put_object().bucket(BUCKET).key("k".repeat(1025)).send().await;
    assert_eq!(refusal(long), refused("KeyTooLongError", 400));
    for key in keys {
        client.delete_object().bucket(BUCKET).key(key).send().await.expect(key);
    }
    client.delete_bucket().bucket(BUCKET).send().await.expect("it is empty");
}

#[tokio::test]
async fn ranges() {
    let server = serve(config());
    let client = client(&server);
    let body = bytes(3 << 20, 1);
    client.put_object().bucket(BUCKET).key("k").body(body.clone().into()).send().await.expect("put");
    let get = |range: &str| client.get_object().bucket(BUCKET).key("k").range(range).send();
    let len = body.len();
    for (range, expected) in [
        ("bytes=0-0", 0..1),
        ("bytes=5-9", 5..10),
        ("bytes=1048570-1048589", 1_048_570..1_048_590),
        ("bytes=3145727-", len - 1..len),
        ("bytes=100-99999999", 100..len),
        ("bytes=-7", len - 7..len),
        ("bytes=-99999999", 0..len),
    ] {
        let got = get(range).await.expect(range);
        let named = format!("bytes {}-{}/{len}", expected.start, expected.end - 1);
        assert_eq!(got.content_range(), Some(named.as_str()));
        assert_eq!(got.body.collect().await.expect(range).to_vec(), &body[expected], "{range}");
        let head = client.head_object().bucket(BUCKET).key("k").range(range).send().await.expect(range);
        assert_eq!(head.content_range(), Some(named.as_str()));
    }
    // Not ranges, so the whole object.
    for range in ["bytes=9-5", "bytes=a-b", "lines=1-2", "bytes=1-2,4-5"] {
        let got = get(range).await.expect(range);
        assert_eq!(got.content_length(), Some(len as i64), "{range}");
        assert!(got.content_range().is_none());
    }
    for range in ["bytes=3145728-", "bytes=-0"] {
        assert_eq!(refusal(get(range).await), refused("InvalidRange", 416), "{range}");
    }
}

#[tokio::test]
async fn zero_byte_objects() {
    let server = serve(config());
    let client = client(&server);
    let put = client.put_object().bucket(BUCKET).key("none").send().await.expect("put");
    assert_eq!(put.e_tag(), Some("\"d41d8cd98f00b204e9800998ecf8427e\""));
    let got = client.get_object().bucket(BUCKET).key("none").send().await.expect("get");
    assert_eq!(got.content_length(), Some(0));
    assert!(got.body.collect().await.expect("body").to_vec().is_empty());
    let ranged = client.get_object().bucket(BUCKET).key("none").range("bytes=0-9").send().await;
    let error = ranged.expect_err("no such range");
    let body = error.raw_response().and_then(|response| response.body().bytes()).expect("XML").to_vec();
    assert!(String::from_utf8_lossy(&body).contains("<ActualObjectSize>0</ActualObjectSize>"));
}

#[tokio::test]
async fn what_a_client_says_of_an_object_is_kept() {
    let server = serve(config());
    let client = client(&server);
    let put = || client.put_object().bucket(BUCKET).key("k").body(ByteStream::from_static(b"hello"));
    let algorithms = [
        (ChecksumAlgorithm::Crc32, "NhCmhg=="),
        (ChecksumAlgorithm::Crc32C, "mnG7TA=="),
        (ChecksumAlgorithm::Crc64Nvme, "M3eFcAZSQlc="),
        (ChecksumAlgorithm::Sha1, "qvTGHdzF6KLavt4PO0gs2a6pQ00="),
        (ChecksumAlgorithm::Sha256, "LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ="),
    ];
    for (algorithm, expected) in algorithms {
        put().checksum_algorithm(algorithm.clone()).send().await.expect("put");
        let head = client.head_object().bucket(BUCKET).key("k").checksum_mode(ChecksumMode::Enabled);
        let head = head.send().await.expect("head");
        let values = [
            head.checksum_crc32(),
            head.checksum_crc32_c(),
            head.checksum_crc64_nvme(),
            head.checksum_sha1(),
            head.checksum_sha256(),
        ];
        assert_eq!(values.into_iter().flatten().collect::<Vec<_>>(), [expected], "{algorithm:?}");
    }
    put()
        .content_type("text/plain; charset=utf-8")
        .content_encoding("gzip,aws-chunked")
        .content_language("de")
        .content_disposition("attachment; filename=\"a b\"")
        .cache_control("max-age=60")
        .metadata("One", "1")
        .metadata("two-words", "zwei Worte")
        .send()
        .await
        .expect("put");
    let head = client.head_object().bucket(BUCKET).key("k").send().await.expect("head");
    assert_eq!(head.content_type(), Some("text/plain; charset=utf-8"));
    assert_eq!(head.content_encoding(), Some("gzip"));
    assert_eq!(head.content_language(), Some("de"));
    assert_eq!(head.content_disposition(), Some("attachment; filename=\"a b\""));
    assert_eq!(head.cache_control(), Some("max-age=60"));
    assert!(head.version_id().is_none());
    let metadata = head.metadata().expect("metadata");
    assert_eq!(metadata.get("one").map(String::as_str), Some("1"));
    assert_eq!(metadata.get("two-words").map(String::as_str), Some("zwei Worte"));
    let overridden = client.get_object().bucket(BUCKET).key("k").response_content_type("a/b").send().await;
    assert_eq!(overridden.expect("get").content_type(), Some("a/b"));
    let gone = client.get_object().bucket(BUCKET).key("k").version_id("v1").send().await;
    assert_eq!(refusal(gone), refused("NoSuchVersion", 404));
}

#[tokio::test]
async fn conditions() {
    let server = serve(config());
    let client = client(&server);
    let put = |body: &'static [u8]| client.put_object().bucket(BUCKET).key("k").body(ByteStream::from_static(body));
    assert_eq!(refusal(put(b"x").if_match("\"x\"").send().await), refused("NoSuchKey", 404));
    let first = put(b"one").if_none_match("*").send().await.expect("there was none");
    let tag = first.e_tag().expect("a tag").to_owned();
    assert_eq!(tag, format!("\"{}\"", hex::encode(Md5::digest(b"one"))));
    assert_eq!(refusal(put(b"two").if_none_match("*").send().await), refused("PreconditionFailed", 412));
    assert_eq!(refusal(put(b"two").if_match("\"other\"").send().await), refused("PreconditionFailed", 412));
    let get = || client.get_object().bucket(BUCKET).key("k");
    assert_eq!(refusal(get().if_none_match(&tag).send().await).1, 304);
    assert_eq!(refusal(get().if_match("\"other\"").send().await), refused("PreconditionFailed", 412));
    get().if_match(&tag).send().await.expect("it matches");
    put(b"two").if_match(&tag).send().await.expect("it matches");
    get().if_none_match(&tag).send().await.expect("it changed");
    let head = client.head_object().bucket(BUCKET).key("k").if_match(&tag).send().await;
    assert_eq!(refusal(head).1, 412);
}

#[tokio::test]
async fn copies_and_deletions() {
    let server = serve(config());
    let client = client(&server);
    let body = bytes(100_000, 3);
    let put = client.put_object().bucket(BUCKET).key("from +é").metadata("a", "b").body(body.clone().into());
    put.send().await.expect("put");
    let source = format!("{BUCKET}/from%20%2B%C3%A9");
    let copy = || client.copy_object().bucket(BUCKET).key("to").copy_source(&source);
    copy().send().await.expect("copy");
    let got = client.get_object().bucket(BUCKET).key("to").send().await.expect("get");
    assert_eq!(got.metadata().and_then(|metadata| metadata.get("a")).map(String::as_str), Some("b"));
    assert_eq!(got.body.collect().await.expect("body").to_vec(), body);
    copy().metadata_directive(MetadataDirective::Replace).content_type("x/y").send().await.expect("copy");
    let head = client.head_object().bucket(BUCKET).key("to").send().await.expect("head");
    assert_eq!((head.content_type(), head.metadata().map_or(0, |metadata| metadata.len())), (Some("x/y"), 0));
    let onto_itself = client.copy_object().bucket(BUCKET).key("from +é").copy_source(&source).send().await;
    assert_eq!(refusal(onto_itself), refused("InvalidRequest", 400));
    let conditional = copy().copy_source_if_match("\"other\"").send().await;
    assert_eq!(refusal(conditional), refused("PreconditionFailed", 412));

    let id = |key: &str| ObjectIdentifier::builder().key(key).build().expect("a key");
    let delete = Delete::builder().objects(id("to")).objects(id("never there")).build().expect("keys");
    let deleted = client.delete_objects().bucket(BUCKET).delete(delete).send().await.expect("delete");
    assert_eq!((deleted.deleted().len(), deleted.errors().len()), (2, 0));
    assert_eq!(refusal(client.get_object().bucket(BUCKET).key("to").send().await), refused("NoSuchKey", 404));
    client.get_object().bucket(BUCKET).key("from +é").send().await.expect("the copy's source is still there");
}

#[tokio::test]
async fn buckets() {
    let server = serve(config());
    let client = client(&server);
    client.create_bucket().bucket("second").send().await.expect("create");
    let again = client.create_bucket().bucket("second").send().await;
    assert_eq!(refusal(again), refused("BucketAlreadyOwnedByYou", 409));
    let listed = client.list_buckets().send().await.expect("list");
    assert_eq!(listed.buckets().iter().filter_map(|bucket| bucket.name()).collect::<Vec<_>>(), [BUCKET, "second"]);
    client.put_object().bucket("second").key("k").send().await.expect("put");
    assert_eq!(refusal(client.delete_bucket().bucket("second").send().await), refused("BucketNotEmpty", 409));
    client.delete_object().bucket("second").key("k").send().await.expect("delete");
    client.delete_bucket().bucket("second").send().await.expect("delete");
    assert_eq!(refusal(client.head_bucket().bucket("second").send().await).1, 404);
    let put = client.put_object().bucket("second").key("k").send().await;
    assert_eq!(refusal(put), refused("NoSuchBucket", 404));
}

#[tokio::test]
async fn what_does_not_fit_is_refused_and_what_is_deleted_makes_room() {
    let capacity = StoreKind::Mem { capacity: Bytes(5 << 20) };
    let server = serve(Config { store: capacity, ..config() });
    let client = client(&server);
    let put = |key: &str, salt| client.put_object().bucket(BUCKET).key(key).body(bytes(4 << 20, salt).into()).send();
    put("a", 0).await.expect("it fits");
    assert_eq!(refusal(put("b", 1).await), refused("InsufficientStorage", 507));
    assert_eq!(refusal(client.head_object().bucket(BUCKET).key("b").send().await).1, 404);
    client.delete_object().bucket(BUCKET).key("a").send().await.expect("delete");
    put("b", 1).await.expect("it fits now");
}

#[tokio::test]
async fn synth_gives_the_payload_without_holding_it() {
    let store = StoreKind::Synth { seed: 42, capacity: Bytes(8 << 20) };
    let server = serve(Config { store, etag: EtagKind::Fast, ..config() });
    let client = client(&server);
    let payloads = Payloads::new(42);
    let len = 5 * (1 << 20) + 777;
    for i in 0..4 {
        let key = format!("train/{i}");
        let mut body = vec![0; len];
        payloads.of(&key).fill(0, &mut body);
        client.put_object().bucket(BUCKET).key(&key).body(body.clone().into()).send().await.expect("put");
        let got = client.get_object().bucket(BUCKET).key(&key).send().await.expect("get");
        assert!(got.e_tag().is_some_and(|tag| tag.ends_with("-1\"")));
        assert!(got.body.collect().await.expect("body").to_vec() == body);
        let range = client.get_object().bucket(BUCKET).key(&key).range("bytes=1048000-2000000").send().await;
        assert!(range.expect("get").body.collect().await.expect("body").to_vec() == body[1_048_000..=2_000_000]);
    }
    // Other bytes are held, as far as they fit, and never mistaken for payload.
    let other = bytes(3 << 20, 9);
    client.put_object().bucket(BUCKET).key("index").body(other.clone().into()).send().await.expect("put");
    let got = client.get_object().bucket(BUCKET).key("index").send().await.expect("get");
    assert!(got.body.collect().await.expect("body").to_vec() == other);
    let too_much = client.put_object().bucket(BUCKET).key("more").body(bytes(6 << 20, 9).into()).send().await;
    assert_eq!(refusal(too_much), refused("InsufficientStorage", 507));
    // A copy is the payload of its source.
    let copy = client.copy_object().bucket(BUCKET).key("copy").copy_source(format!("{BUCKET}/train/0"));
    copy.send().await.expect("copy");
    let got = client.get_object().bucket(BUCKET).key("copy").send().await.expect("get");
    assert_eq!(payloads.of("train/0").verify(0, &got.body.collect().await.expect("body").to_vec()), Ok(()));
}

#[tokio::test]
async fn readers_see_whole_objects_while_writers_replace_them() {
    let server = serve(config());
    let client = client(&server);
    let body = |version: u8| vec![version; 300_000];
    client.put_object().bucket(BUCKET).key("k").body(body(0).into()).send().await.expect("put");
    let writer = {
        let client = client.clone();
        tokio::spawn(async move {
            for version in 1..=40 {
                client.put_object().bucket(BUCKET).key("k").body(body(version).into()).send().await.expect("put");
                let got = client.get_object().bucket(BUCKET).key("k").send().await.expect("get");
                let first = got.body.collect().await.expect("body").to_vec()[0];
                assert_eq!(first, version, "what was acknowledged is read");
            }
        })
    };
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move {
                let mut last = 0;
                for _ in 0..40 {
                    let got = client.get_object().bucket(BUCKET).key("k").send().await.expect("get");
                    let got = got.body.collect().await.expect("body").to_vec();
                    assert!(got.len() == 300_000 && got.iter().all(|byte| *byte == got[0]), "a torn object");
                    assert!(got[0] >= last, "an older version after a newer one");
                    last = got[0];
                }
            })
        })
        .collect();
    writer.await.expect("writer");
    for reader in readers {
        reader.await.expect("reader");
    }
}
