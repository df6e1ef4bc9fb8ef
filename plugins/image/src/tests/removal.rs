//! Tags, removal, prune, and what must stay.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn removal_by_name_and_by_id() {
    let world = World::new().await;
    let id = load_simple(&world, "one", &["a:1", "a:2"]).await;
    assert_eq!(world.remove("a:1", "").await.unwrap(), ["Untagged a:1"]);
    let chain = digest(&layer("one")); // of one layer: its diff id
    assert_eq!(
        world.remove("a:2", "").await.unwrap(),
        ["Untagged a:2".to_owned(), format!("Deleted {id}"), format!("Deleted {chain}")]
    );
    assert_eq!(world.blobs(), 0);
    assert!(world.layers.chains.lock().unwrap().is_empty());
    assert_eq!(world.actions(), ["load", "untag", "untag", "delete"]);
    let gone = world.remove("a:2", "").await.unwrap_err();
    assert_eq!(gone.to_string(), "No such image: a:2");

    let id = load_simple(&world, "two", &["a:1", "b:1"]).await;
    let short = &id[7..19];
    let error = world.remove(&id, "").await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "conflict: unable to delete {short} (must be forced) - image is referenced in multiple \
             repositories"
        )
    );
    assert_eq!(world.remove(short, "force=1").await.unwrap().len(), 4);
    assert_eq!(world.blobs(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_hold_their_image() {
    let world = World::new().await;
    let id = load_simple(&world, "held", &["a:1"]).await;
    let short = &id[7..19];
    world.use_image(&id, 'c', false);
    let stopped = "c".repeat(12);
    let cases = [
        (
            "a:1",
            "",
            format!(
                "conflict: unable to remove repository reference \"a:1\" (must force) - container \
                 {stopped} is using its referenced image {short}"
            ),
        ),
        (
            short,
            "",
            format!(
                "conflict: unable to delete {short} (must be forced) - image is being used by \
                 stopped container {stopped}"
            ),
        ),
    ];
    for (name, query, message) in cases {
        assert_eq!(world.remove(name, query).await.unwrap_err().to_string(), message);
    }

    // By name and forced: everybody loses sight of it, its content stays for the container.
    let done = world.remove("a:1", "force=1").await.unwrap();
    assert_eq!(done, ["Untagged a:1".to_owned(), format!("Deleted {id}")]);
    assert_eq!(world.list("").await.unwrap(), json!([]));
    assert!(world.store.index().resolve(&id, None).is_err());
    let world = world.restart().await;
    assert_eq!((world.blobs(), world.layers.chains.lock().unwrap().len()), (2, 1));

    // The container goes, and with the next removal the content.
    world.users.0.lock().unwrap().clear();
    load_simple(&world, "next", &["b:1"]).await;
    assert_eq!((world.blobs(), world.layers.chains.lock().unwrap().len()), (2, 1));

    let id = load_simple(&world, "running", &["r:1"]).await;
    world.use_image(&id, 'd', true);
    let error = world.remove(&id, "force=1").await.unwrap_err().to_string();
    assert!(error.contains("(cannot be forced) - image is being used by running container"));
    assert_eq!(world.remove("r:1", "force=1").await.unwrap(), ["Untagged r:1"]);
    assert_eq!(world.list("").await.unwrap()[0]["Containers"], json!(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_moves_to_the_newer_image_and_the_older_dangles() {
    let world = World::new().await;
    let old = load_simple(&world, "old", &["a:1"]).await;
    let new = layer("new");
    let old_config = config(&[&layer("old")], "old");
    let config = config(&[&new], "new");
    let lines = world.load(&docker_archive(&config, &[&new], &["a:1"]), "").await.unwrap();
    assert_eq!(
        messages(&lines),
        [
            &format!(
                "The image a:1 already exists, renaming the old one with ID {old} to empty string\n"
            ),
            "Loaded image: a:1\n"
        ]
    );
    let dangling = world.list(r#"filters={"dangling":["true"]}"#).await.unwrap();
    assert_eq!((&dangling[0]["Id"], &dangling[1]), (&json!(old), &Value::Null));
    assert_eq!(world.list(r#"filters={"dangling":["0"]}"#).await.unwrap()[0]["RepoTags"][0], "a:1");

    let request = world.request("", &[], Vec::new());
    let response = crate::handlers::prune(world.store.clone(), request).await.unwrap();
    let report: Value = serde_json::from_slice(&collect(response).await).unwrap();
    assert_eq!(report["ImagesDeleted"][0]["Deleted"], json!(old));
    let freed = 1000 + layer("old").len() + old_config.len();
    assert_eq!(report["SpaceReclaimed"], json!(freed));
    assert_eq!(world.list("").await.unwrap().as_array().unwrap().len(), 1);
    let request = world.request(r#"filters={"dangling":["false"]}"#, &[], Vec::new());
    crate::handlers::prune(world.store.clone(), request).await.unwrap();
    world.store.tidy(&Ctx::background()).await;
    assert_eq!((world.list("").await.unwrap(), world.blobs()), (json!([]), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_select() {
    let world = World::new().await;
    load_simple(&world, "one", &["team/one:1", "team/one:2"]).await;
    load_simple(&world, "two", &["q.io/two:1"]).await;
    let cases = [
        (r#"{"label":["is=one"]}"#, json!([["team/one:1", "team/one:2"]])),
        (r#"{"label":["none"]}"#, json!([])),
        (r#"{"reference":["team/*:2"]}"#, json!([["team/one:2"]])),
        (r#"{"reference":["q.io/two"]}"#, json!([["q.io/two:1"]])),
        (r#"{"before":["team/one:1"]}"#, json!([])),
        (r#"{"since":["q.io/two:1"]}"#, json!([])),
        (r#"{"until":["2024-01-01"],"label":["is=two"]}"#, json!([["q.io/two:1"]])),
        (r#"{"until":["2020-01-01"]}"#, json!([])),
    ];
    for (filters, expected) in cases {
        let images = world.list(&format!("filters={filters}")).await.unwrap();
        let tags: Vec<&Value> = images.as_array().unwrap().iter().map(|i| &i["RepoTags"]).collect();
        assert_eq!(json!(tags), expected, "{filters}");
    }
    assert!(world.list(r#"filters={"nonsense":["1"]}"#).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_are_added_and_moved() {
    let world = World::new().await;
    let id = load_simple(&world, "one", &["a:1"]).await;
    let request = world.request("repo=me/b", &[("name", "a:1")], Vec::new());
    let response = crate::handlers::tag(world.store.clone(), request).await.unwrap();
    assert_eq!(response.status, http::StatusCode::CREATED);
    let world = world.restart().await;
    assert_eq!(world.store.index().resolve("me/b", None).unwrap().id.as_str(), id);
    assert!(world.store.index().resolve(&id, None).unwrap().record.last_tagged.is_some());
    for (query, message) in [
        ("repo=sha256&tag=x", "refusing to create an ambiguous tag"),
        ("repo=a&tag=-", "invalid tag format"),
        ("", "invalid reference format"),
    ] {
        let request = world.request(query, &[("name", "a:1")], Vec::new());
        let error = crate::handlers::tag(world.store.clone(), request).await.unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_save_keeps_its_image_and_nothing_else() {
    let world = World::new().await;
    // More than the connection takes without being read.
    let large = tar(&[("large", &vec![7; 24 << 20])]);
    let config = config(&[&large], "large");
    world.load(&docker_archive(&config, &[&large], &["large:1"]), "").await.unwrap();
    load_simple(&world, "small", &["small:1"]).await;
    let request = world.request("names=large:1", &[], Vec::new());
    let stalled = crate::handlers::save(world.store.clone(), request).await.unwrap();

    world.remove("small:1", "").await.unwrap();
    assert_eq!(world.blobs(), 2, "those of the image that is saved");
    world.remove("large:1", "").await.unwrap();
    assert_eq!(world.blobs(), 2);
    let saved = collect(stalled).await;
    let other = World::new().await;
    assert_eq!(messages(&other.load(&saved, "").await.unwrap()), ["Loaded image: large:1\n"]);
    while !world.store.tasks.running().is_empty() {
        tokio::task::yield_now().await;
    }
    world.store.tidy(&Ctx::background()).await;
    assert_eq!(world.blobs(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_load_keeps_what_it_brought_and_nothing_else() {
    let world = World::new().await;
    load_simple(&world, "one", &["a:1"]).await;
    let layer = tar(&[("large", &vec![7; 1 << 20])]);
    let config = config(&[&layer], "slow");
    let archive = docker_archive(&config, &[&layer], &["slow:1"]);
    let (mut body, stream) = tokio::io::duplex(64 << 10);
    let request = world.request("", &[], Vec::new());
    let body_stream = tokio_util::io::ReaderStream::new(stream);
    let frames = futures_util::StreamExt::map(body_stream, |bytes| {
        let bytes = bytes.map_err(|e| Error::io("read", "the request", e))?;
        Ok(http_body::Frame::data(bytes))
    });
    let body_of = http_body_util::StreamBody::new(frames);
    let request = Request { body: http_body_util::BodyExt::boxed_unsync(body_of), ..request };
    let load = crate::handlers::load(world.store.clone(), request);
    let load = world.store.tasks.spawn("load", load);
    // All but the end: the layer is in the store.
    let (most, end) = archive.split_at(archive.len() - 2048);
    tokio::io::AsyncWriteExt::write_all(&mut body, most).await.unwrap();
    while world.blobs() < 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    world.remove("a:1", "").await.unwrap();
    assert_eq!(world.blobs(), 1, "the layer that was brought");
    tokio::io::AsyncWriteExt::write_all(&mut body, end).await.unwrap();
    drop(body);
    collect(load.await.unwrap().unwrap()).await;
    assert_eq!(world.list("").await.unwrap()[0]["RepoTags"], json!(["slow:1"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_forced_away_goes_with_the_last_container() {
    let world = World::new().await;
    let id = load_simple(&world, "held", &["a:1"]).await;
    world.use_image(&id, 'c', false);
    let upkeep = world.store.tasks.spawn("upkeep", crate::upkeep::upkeep(world.store.clone()));
    world.remove("a:1", "force=1").await.unwrap();
    assert!(world.blobs() > 0 && world.store.has_retired());
    // Both may come before the task listens.
    for _ in 0..100 {
        world.users.0.lock().unwrap().clear();
        world.events.publish(Event::now("container", "destroy", "c"));
        tokio::time::sleep(Duration::from_millis(20)).await;
        if world.blobs() == 0 {
            break;
        }
    }
    assert_eq!(world.blobs(), 0);
    assert!(world.layers.chains.lock().unwrap().is_empty());
    world.store.tasks.stopping().cancel();
    upkeep.await.unwrap();
}
