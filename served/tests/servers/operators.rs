//! What operators and clients hear of the cluster from a metadata server whose data servers are not there.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use netfs_common::codec;
use netfs_common::id::{InstanceId, ServerId, SessionId};
use netfs_common::map::ClusterMap;
use netfs_common::net::Link;
use netfs_common::tls::Identity;
use netfs_common::wire::meta::{Answer, Push, PushReply, Request, Response};
use netfs_common::wire::operator::{Condition, Operation, Outcome};
use netfs_common::wire::{Claim, Hello, HelloReply, PROTOCOL, Role};
use netfs_served::meta::server::{DataServers, MetaOptions, MetaServer, PoolOptions};
use netfs_served::thread::Ending;
use tokio::sync::mpsc;

use crate::common::{PATIENCE, Pki, dialer, make_pki};

fn options(dir: &Path, pki: &Pki) -> MetaOptions {
    // Nobody is there.
    let at = DataServers::Cluster(vec![vec!["127.0.0.1:1".into()]]);
    let listen = ([127, 0, 0, 1], 0).into();
    let mut options = MetaOptions::new(dir.join("meta"), listen, at, pki.server.clone());
    options.volumes = vec!["v".into()];
    options.pools =
        [("v".to_string(), PoolOptions { replicas: 2, groups: 16, ..PoolOptions::default() })]
            .into();
    options.cluster.deadline = Duration::from_secs(1);
    options
}

/// A connection, what the server said, and the maps that it tells.
async fn connect(
    identity: &Identity,
    meta: &MetaServer,
    role: Role,
) -> (Link, HelloReply, mpsc::Receiver<ClusterMap>) {
    let dialer = dialer(identity);
    let hello = Hello {
        protocol: (PROTOCOL, PROTOCOL),
        features: 0,
        role,
        volume: if role == Role::Meta { "v".into() } else { String::new() },
        session: SessionId(u64::from(role == Role::Meta)),
        claim: Claim::Begin,
        instance: InstanceId(1),
        client: "test".into(),
    };
    let (heard, maps) = mpsc::channel(16);
    let handler = move |_: Link, push: Bytes| {
        let heard = heard.clone();
        async move {
            if let Push::Map(map) = codec::decode(&push).unwrap() {
                heard.try_send(map).unwrap();
            }
            Bytes::from(codec::encode(&PushReply::Done).unwrap())
        }
    };
    let words = codec::encode(&hello).unwrap();
    let (link, welcome) = dialer.link(meta.addr(), &words, Arc::new(handler)).await.unwrap();
    (link, codec::decode(&welcome).unwrap(), maps)
}

async fn ask(link: &Link, request: Request) -> Response {
    let request = codec::encode(&request).unwrap();
    let answer = link.call(request.into(), Instant::now() + PATIENCE).await.unwrap();
    codec::decode::<Answer>(&answer).unwrap().reply.unwrap()
}

async fn operate(link: &Link, operation: Operation) -> Outcome {
    match ask(link, Request::Operate(operation)).await {
        Response::Operated(outcome) => outcome,
        other => panic!("{other:?}"),
    }
}

async fn stop(meta: MetaServer) {
    tokio::task::spawn_blocking(|| meta.stop(Ending::Drain)).await.unwrap().unwrap();
}

#[tokio::test]
async fn everybody_may_look_and_only_holders_of_a_servers_certificate_may_change() {
    let dir = tempfile::tempdir().unwrap();
    let pki = make_pki(dir.path());
    let meta = MetaServer::start(options(dir.path(), &pki)).unwrap();
    let (client, ..) = connect(&pki.client, &meta, Role::Admin).await;
    let (operator, ..) = connect(&pki.server, &meta, Role::Admin).await;
    let (_mount, welcome, mut maps) = connect(&pki.client, &meta, Role::Meta).await;
    let map = welcome.volume.unwrap().map;
    assert_eq!((map.servers.len(), map.pools.len(), map.groups().count()), (1, 1, 16));
    assert!(map.groups().all(|(_, chain)| chain.replicas.is_empty()), "nobody has anything yet");

    let add = || Operation::Add(vec!["127.0.0.1:2".into(), "[::1]:2".into()]);
    let refused = operate(&client, add()).await;
    assert!(matches!(&refused, Outcome::Refused(why) if why.contains("--identity")), "{refused:?}");
    let done = operate(&operator, add()).await;
    assert!(matches!(&done, Outcome::Done(text) if text.contains("server 2 is added")), "{done:?}");
    // A client that has the volume mounted is told at once.
    let told = tokio::time::timeout(PATIENCE, maps.recv()).await.unwrap().unwrap();
    assert!(told.version > map.version && told.servers.len() == 2, "{told:?}");

    let more = Operation::Replicas { volume: "v".into(), replicas: 3, min: Some(2) };
    assert!(matches!(operate(&operator, more).await, Outcome::Done(_)));
    let none = Operation::Replicas { volume: "w".into(), replicas: 3, min: None };
    assert!(matches!(operate(&operator, none).await, Outcome::Refused(_)));

    tokio::time::sleep(Duration::from_millis(1500)).await;
    let Outcome::Servers(lines) = operate(&client, Operation::List).await else { panic!() };
    assert_eq!(lines.iter().map(|line| line.id).collect::<Vec<_>>(), [ServerId(1), ServerId(2)]);
    assert!(lines.iter().all(|line| line.condition == Condition::Dead && line.head == 0));
    let Response::Status(status) = ask(&client, Request::Status).await else { panic!() };
    let redundancy = status.volumes[0].redundancy;
    assert_eq!((redundancy.replicas, redundancy.min_replicas), (3, 2));
    assert_eq!((redundancy.groups, redundancy.unavailable, redundancy.full), (16, 16, 0));
    let alarms = status.alarms.join("\n");
    assert!(alarms.contains("volume v: 16 of 16 placement groups are unavailable"), "{alarms}");
    assert!(alarms.contains("data server 1 (127.0.0.1:1) has not answered since"), "{alarms}");
    assert!(meta.health().ask().unwrap_err().contains("placement groups are unavailable"));
    stop(meta).await;

    // All of it is kept; servers that are named again are not added again.
    let meta = MetaServer::start(options(dir.path(), &pki)).unwrap();
    let (client, ..) = connect(&pki.client, &meta, Role::Admin).await;
    let Outcome::Servers(kept) = operate(&client, Operation::List).await else { panic!() };
    let addrs = |lines: Vec<_>| {
        lines
            .into_iter()
            .map(|line: netfs_common::wire::operator::ServerLine| line.addrs)
            .collect::<Vec<_>>()
    };
    assert_eq!(addrs(kept), addrs(lines));
    stop(meta).await;

    // A volume whose directory is missing is not made anew.
    let (volume, away) = (dir.path().join("meta/v"), dir.path().join("v"));
    std::fs::rename(&volume, &away).unwrap();
    let error = MetaServer::start(options(dir.path(), &pki)).unwrap_err().to_string();
    assert!(error.contains("made anew") && error.contains("volume create v"), "{error}");
    std::fs::create_dir(&volume).unwrap();
    assert!(MetaServer::start(options(dir.path(), &pki)).is_err(), "nor an emptied one");
    std::fs::remove_dir(&volume).unwrap();
    std::fs::rename(&away, &volume).unwrap();
    // Another one may come beside it.
    let mut more = options(dir.path(), &pki);
    more.volumes.push("w".into());
    stop(MetaServer::start(more).unwrap()).await;

    // What is damaged is never taken for a new cluster.
    std::fs::write(dir.path().join("meta/cluster"), "not what was here").unwrap();
    let error = MetaServer::start(options(dir.path(), &pki)).unwrap_err().to_string();
    assert!(error.contains("meta/cluster") && error.contains("damaged"), "{error}");
}

#[tokio::test]
async fn the_data_server_of_the_process_has_no_company_and_may_move() {
    let dir = tempfile::tempdir().unwrap();
    let pki = make_pki(dir.path());
    let with = |data| MetaOptions { data, ..options(dir.path(), &pki) };
    let meta = MetaServer::start(with(DataServers::Local(5))).unwrap();
    let (_mount, welcome, _) = connect(&pki.client, &meta, Role::Meta).await;
    assert_eq!(welcome.volume.unwrap().map.servers[0].addrs, ["127.0.0.1:5"]);
    let (operator, ..) = connect(&pki.server, &meta, Role::Admin).await;
    let refused = operate(&operator, Operation::Add(vec!["h:1".into()])).await;
    assert!(matches!(&refused, Outcome::Refused(why) if why.contains("meta.data_servers")));
    stop(meta).await;
    let meta = MetaServer::start(with(DataServers::Local(6))).unwrap();
    let (operator, ..) = connect(&pki.server, &meta, Role::Admin).await;
    let Outcome::Servers(lines) = operate(&operator, Operation::List).await else { panic!() };
    assert_eq!(lines.len(), 1);
    assert_eq!(lines[0].addrs, ["127.0.0.1:6", "[::1]:6"]);
    stop(meta).await;
    let two = DataServers::Cluster(vec![vec!["h:1".into()], vec!["h:2".into()]]);
    stop(MetaServer::start(with(two)).unwrap()).await;
    let error = MetaServer::start(with(DataServers::Local(6))).unwrap_err().to_string();
    assert!(error.contains("meta.data_servers is empty"), "{error}");
}
