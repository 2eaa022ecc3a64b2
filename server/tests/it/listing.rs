//! Listings, against a model.

use std::collections::BTreeSet;

use aws_sdk_s3::Client;
use aws_sdk_s3::types::EncodingType;
use proptest::prelude::*;
use proptest::test_runner::{Config as Runs, TestRunner};

use super::support::{BUCKET, client, config, refusal, refused, serve};

/// Keys and common prefixes as the S3 manual words it, in order.
fn model(keys: &BTreeSet<String>, prefix: &str, delimiter: &str, after: &str) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for key in keys.iter().filter(|key| key.starts_with(prefix) && (after.is_empty() || key.as_str() > after)) {
        let name = match key[prefix.len()..].split_once(delimiter) {
            Some((head, _)) if !delimiter.is_empty() => format!("{prefix}{head}{delimiter}"),
            _ => key.clone(),
        };
        if name != after && all.last() != Some(&name) {
            all.push(name);
        }
    }
    all
}

async fn all_v2(client: &Client, prefix: &str, delimiter: &str, after: &str, page: i32) -> Vec<String> {
    let (mut all, mut token) = (Vec::new(), None);
    loop {
        let list = client.list_objects_v2().bucket(BUCKET).prefix(prefix).delimiter(delimiter).max_keys(page);
        let list = list.start_after(after).set_continuation_token(token.take());
        let listed = list.send().await.expect("list");
        let mut names: Vec<String> = listed.contents().iter().filter_map(|object| object.key.clone()).collect();
        assert!(listed.contents().iter().all(|object| object.e_tag.is_some() && object.size.is_some()));
        names.extend(listed.common_prefixes().iter().filter_map(|prefix| prefix.prefix.clone()));
        assert_eq!(listed.key_count, Some(names.len() as i32));
        names.sort();
        all.extend(names);
        match listed.next_continuation_token {
            Some(next) => token = Some(next),
            None => return all,
        }
    }
}

async fn all_v1(client: &Client, prefix: &str, delimiter: &str, page: i32) -> Vec<String> {
    let (mut all, mut marker) = (Vec::new(), String::new());
    loop {
        let list = client.list_objects().bucket(BUCKET).prefix(prefix).delimiter(delimiter).max_keys(page);
        let listed = list.marker(&marker).send().await.expect("list");
        let mut names: Vec<String> = listed.contents().iter().filter_map(|object| object.key.clone()).collect();
        names.extend(listed.common_prefixes().iter().filter_map(|prefix| prefix.prefix.clone()));
        names.sort();
        all.extend(names);
        match listed.next_marker {
            Some(next) => marker = next,
            None => return all,
        }
    }
}

#[test]
fn any_listing_is_the_model_s() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let server = serve(config());
    let client = runtime.block_on(async { client(&server) });
    // The SDK takes a key of nothing but spaces for none.
    let key = "[ab/é+ ]{0,4}[ab/é+]";
    let cases = (
        prop::collection::btree_set(key, 1..25),
        "[ab/é]{0,2}",
        prop::sample::select(vec!["", "/", "é", "b/"]),
        prop::option::of(key),
        1..6i32,
    );
    let mut runner = TestRunner::new(Runs { cases: 40, failure_persistence: None, ..Runs::default() });
    let outcome = runner.run(&cases, |(keys, prefix, delimiter, after, page)| {
        runtime.block_on(async {
            for key in &keys {
                client.put_object().bucket(BUCKET).key(key).send().await.expect("put");
            }
            let after = after.unwrap_or_default();
            let listed = all_v2(&client, &prefix, delimiter, &after, page).await;
            let listed_v1 = all_v1(&client, &prefix, delimiter, page).await;
            for key in &keys {
                client.delete_object().bucket(BUCKET).key(key).send().await.expect("delete");
            }
            prop_assert_eq!(listed, model(&keys, &prefix, delimiter, &after));
            prop_assert_eq!(listed_v1, model(&keys, &prefix, delimiter, ""));
            Ok(())
        })
    });
    outcome.expect("every listing is the model's");
}

#[tokio::test]
async fn names_are_encoded_when_asked() {
    let server = serve(config());
    let client = client(&server);
    for key in ["a b/c+d", "a b/é&", "control\u{1}"] {
        client.put_object().bucket(BUCKET).key(key).send().await.expect("put");
    }
    let list = client.list_objects_v2().bucket(BUCKET).encoding_type(EncodingType::Url);
    let listed = list.clone().send().await.expect("list");
    let names: Vec<_> = listed.contents().iter().filter_map(|object| object.key()).collect();
    assert_eq!(names, ["a%20b/c%2Bd", "a%20b/%C3%A9%26", "control%01"]);
    let listed = list.prefix("a ").delimiter("/").send().await.expect("list");
    assert_eq!(listed.prefix(), Some("a%20"));
    assert_eq!(listed.common_prefixes()[0].prefix(), Some("a%20b/"));
    let token = client.list_objects_v2().bucket(BUCKET).continuation_token("%%%").send().await;
    assert_eq!(refusal(token), refused("InvalidArgument", 400));
    let none = client.list_objects_v2().bucket("absent").send().await;
    assert_eq!(refusal(none), refused("NoSuchBucket", 404));
}
