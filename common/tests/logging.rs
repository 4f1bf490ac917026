//! Logging is set up once for a process, so it has a test process of its own.

use netfs_common::config::{LogConfig, LogFormat};
use netfs_common::telemetry;

#[test]
fn json_lines_go_to_the_file_at_the_level_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("log");
    let bad = LogConfig { level: "loud=very".into(), ..LogConfig::default() };
    assert!(telemetry::init(&bad).unwrap_err().to_string().contains("log.level = \"loud=very\""));
    let bad = LogConfig { file: Some("/nowhere/log".into()), ..LogConfig::default() };
    assert!(telemetry::init(&bad).unwrap_err().to_string().contains("cannot open log file"));

    let config =
        LogConfig { format: LogFormat::Json, level: "info".into(), file: Some(file.clone()) };
    telemetry::init(&config).unwrap();
    tracing::info!(answer = 42, "hello");
    tracing::debug!("not said");
    for _ in 0..10 {
        netfs_common::warn_rarely!(std::time::Duration::from_secs(60), "again");
    }
    let text = std::fs::read_to_string(&file).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(lines[0].contains("\"answer\":42") && lines[0].contains("\"message\":\"hello\""));
    assert!(lines[1].contains("again"));
    assert!(telemetry::init(&config).is_err(), "a second time");
}
