//! Configuration as an operator meets it.

// The lint's exemption covers test functions, not what they share.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use netfs_common::config::{
    ByteSize, ClientConfig, Config, OutagePolicy, ServedConfig, Sources, SyncPolicy, render,
};

fn file(dir: &tempfile::TempDir, text: &str) -> PathBuf {
    let path = dir.path().join("netfs.toml");
    std::fs::write(&path, text).unwrap();
    path
}

/// The message for a file, without its path.
fn message<T: Config + std::fmt::Debug>(text: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, text);
    let message = Sources::new().file(&path).load::<T>().unwrap_err().to_string();
    assert!(!message.contains('\n'), "{message}");
    message.replace(&path.display().to_string(), "FILE")
}

fn env(variables: &[(&str, &str)]) -> Sources {
    Sources::new().env(variables.iter().map(|(k, v)| ((*k).into(), (*v).into())))
}

#[test]
fn defaults_are_valid_and_the_rendered_file_says_the_same() {
    let dir = tempfile::tempdir().unwrap();
    fn check<T: Config + PartialEq + std::fmt::Debug>(dir: &tempfile::TempDir) {
        T::default().validate().unwrap();
        let text = render::<T>().unwrap();
        let read: T = Sources::new().file(file(dir, &text)).load().unwrap();
        assert_eq!(read, T::default(), "{text}");
    }
    check::<ServedConfig>(&dir);
    check::<ClientConfig>(&dir);
}

#[test]
fn the_rendered_file_explains_every_setting() {
    let text = render::<ServedConfig>().unwrap();
    let mut explained = false;
    for line in text.lines() {
        let is_setting = !line.starts_with('#') && line.contains(" = ");
        assert!(!is_setting || explained, "not explained: {line}");
        explained = line.starts_with('#');
    }
    for part in ["[meta]", "[data]", "# [[volume]]", "# listen = \"127.0.0.1:7480\"", "\"256 MiB\""]
    {
        assert!(text.contains(part), "{part} in\n{text}");
    }
}

#[test]
fn later_sources_win() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(
        &dir,
        "[meta]\nsync = \"always\"\nflush_interval_ms = 10\ncache_bytes = 1048576\n\
         [data]\nsegment_bytes = \"32 MiB\"\n[[volume]]\nname = \"a\"\n[[volume]]\nname = \"b\"\n",
    );
    let config: ServedConfig = env(&[
        ("NETFS_META_FLUSH_INTERVAL_MS", "20"),
        ("NETFS_META_CACHE_BYTES", "2 MiB"),
        ("NETFS_HTTP_LISTEN", "127.0.0.1:1"),
        ("NETFS_OTHER_THING", "not ours"),
        ("HOME", "/root"),
    ])
    .file(path)
    .overrides(["meta.flush_interval_ms=30".into(), "meta.data_servers=[\"d:1\"]".into()])
    .load()
    .unwrap();
    assert_eq!(config.meta.sync, SyncPolicy::Always);
    assert_eq!(config.meta.flush_interval_ms, 30);
    assert_eq!(config.meta.cache_bytes, ByteSize::mib(2));
    assert_eq!(config.meta.data_servers, ["d:1"]);
    assert_eq!(config.data.segment_bytes, ByteSize::mib(32));
    assert_eq!(config.http.listen, Some("127.0.0.1:1".parse().unwrap()));
    let names: Vec<_> = config.volume.iter().map(|v| v.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    let config: ClientConfig = env(&[("NETFS_MOUNT_ON_OUTAGE", "error")]).load().unwrap();
    assert_eq!(config.mount.on_outage, OutagePolicy::Error);
}

#[test]
fn mistakes_in_the_file_are_named_with_line_and_key() {
    for (text, expected) in [
        ("[meta]\n# note\nlisten_on = 1\n", "FILE:3: meta.listen_on: unknown field `listen_on`"),
        ("\n[metta]\n", "FILE:2: metta: unknown field `metta`"),
        ("[meta]\nflush_interval_ms = \"1s\"\n", "FILE:2: meta.flush_interval_ms: invalid type"),
        ("[data]\ndir = \"/x\"\n\nscrub_days = -1\n", "FILE:4: data.scrub_days: invalid value"),
        ("[meta]\nlisten = \"nowhere\"\n", "FILE:2: meta.listen: invalid socket address"),
        ("[meta]\nsync = \"often\"\n", "FILE:2: meta.sync: unknown variant `often`"),
        ("[data]\nsegment_bytes = \"1 MB\"\n", "FILE:2: data.segment_bytes: `1 MB` is no size"),
        (
            "[meta]\ndata_servers = [\n  \"a\",\n  1,\n]\n",
            "FILE:4: meta.data_servers: invalid type",
        ),
        ("[[volume]]\nnamed = \"x\"\n", "FILE:2: volume.named: unknown field"),
        ("[meta]\nsync = = 1\n", "FILE:2: meta.sync: "),
        ("[meta]\nsync = \"always\"\nsync = \"interval\"\n", "FILE:3: meta.sync: duplicate key"),
    ] {
        let message = message::<ServedConfig>(text);
        assert!(message.starts_with(expected), "{expected}\n{message}");
    }
}

#[test]
fn settings_that_cannot_both_be_are_both_named() {
    for (text, parts) in [
        (
            "[net]\nkeep_alive_ms = 9000\nidle_timeout_ms = 10000\n",
            &["net.keep_alive_ms = 9000", "net.idle_timeout_ms = 10000"][..],
        ),
        (
            "[meta]\nlisten = \"[::]:7401\"\n",
            &["meta.listen = \"[::]:7401\"", "data.listen = \"[::]:7401\""],
        ),
        (
            "[meta]\ndir = \"/d/m\"\n[data]\ndir = \"/d\"\n",
            &["meta.dir = \"/d/m\"", "data.dir = \"/d\""],
        ),
        (
            "[data]\nreserve_bytes = \"1 MiB\"\n",
            &["data.reserve_bytes = \"1 MiB\"", "data.segment_bytes = \"256 MiB\""],
        ),
        ("[[volume]]\nname = \"a\"\n[[volume]]\nname = \"a\"\n", &["\"a\" is there twice"]),
        ("[[volume]]\nname = \"a/b\"\n", &["volume.name = \"a/b\""]),
        ("[[volume]]\nreplicas = 6\n", &["volume.replicas = 6"]),
        ("[[volume]]\ngroups = 0\n", &["volume.groups = 0"]),
        ("[meta]\ndata_servers = [\"a:1,b\"]\n", &["\"a:1,b\"", "host:port"]),
        ("[meta]\ndata_deadline_ms = 10\n", &["meta.data_deadline_ms = 10"]),
        (
            "[meta]\nrepair_after_ms = 10\n",
            &["meta.repair_after_ms = 10", "data_deadline_ms = 5000"],
        ),
    ] {
        let message = message::<ServedConfig>(text);
        for part in parts {
            assert!(message.contains(part), "{part}: {message}");
        }
    }
    let message = message::<ClientConfig>("[mount]\nread_ahead_kb = 1000000\n");
    assert!(message.contains("mount.read_ahead_kb = 1000000"), "{message}");
}

#[test]
fn mistakes_elsewhere_are_named_by_their_source() {
    let error = |sources: Sources| sources.load::<ServedConfig>().unwrap_err().to_string();
    let unknown = error(env(&[("NETFS_META_LISTE", "x")]));
    assert_eq!(unknown, "NETFS_META_LISTE: section `meta` has no setting `liste`");
    let typed = error(env(&[("NETFS_META_FLUSH_INTERVAL_MS", "soon")]));
    assert_eq!(typed, "NETFS_META_FLUSH_INTERVAL_MS: `soon` is not of type integer");
    let value = error(env(&[("NETFS_META_SYNC", "often")]));
    assert!(value.starts_with("NETFS_META_SYNC: unknown variant `often`"), "{value}");
    for (flag, expected) in [
        ("meta", "--set meta: write section.key=value"),
        ("x.y=1", "--set x.y=1: there is no section `x`"),
        ("meta.x=1", "--set meta.x=1: unknown field `x`"),
    ] {
        let message = error(Sources::new().overrides([flag.into()]));
        assert!(message.starts_with(expected), "{message}");
    }
    let missing = error(Sources::new().file("/nowhere/netfs.toml"));
    assert!(missing.starts_with("cannot read configuration /nowhere/netfs.toml"), "{missing}");
}

#[test]
fn every_complaint_is_one_line_whatever_was_written() {
    for flag in ["a\rb", "log.\u{1b}[31m=1", "net.max_calls=\n\n7 7", "volume.x=1"] {
        let message =
            Sources::new().overrides([flag.into()]).load::<ServedConfig>().unwrap_err().to_string();
        assert!(!message.contains(char::is_control), "{message:?}");
    }
    for text in ["[[volume]]\nname = \"a\\nb\"", "\"a\\rb\" = 1", "[log]\nformat = \"a\\nb\""] {
        let message = Sources::new().text(text).load::<ServedConfig>().unwrap_err().to_string();
        assert!(!message.contains(char::is_control), "{message:?}");
    }
    assert_eq!(
        Sources::new().text("x = 1").load::<ServedConfig>().unwrap_err().to_string(),
        Sources::new()
            .text("x = 1")
            .file("/f")
            .load::<ServedConfig>()
            .unwrap_err()
            .to_string()
            .replace("/f:", "text:"),
    );
}
