//! Every object against a file: written by hand after the published schema, all fields present, in
//! the order the reference sends them. Reading it and writing it again must give the same text.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fmt::Debug;

use gantry_api::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// JSON text without the white space between tokens.
fn minify(text: &str) -> String {
    let (mut small, mut quoted, mut escaped) = (String::new(), false, false);
    for c in text.chars() {
        if quoted || !c.is_ascii_whitespace() {
            small.push(c);
        }
        (quoted, escaped) = match c {
            '"' if !escaped => (!quoted, false),
            '\\' if !escaped => (quoted, true),
            _ => (quoted, false),
        };
    }
    small
}

fn check<T: Serialize + DeserializeOwned + Debug + PartialEq>(golden: &str) {
    let object: T = serde_json::from_str(golden).unwrap();
    assert_eq!(serde_json::to_string(&object).unwrap(), minify(golden));
    assert_eq!(json::from_slice::<T>(golden.as_bytes()).unwrap(), object);

    // The same from a client that writes other letter case and sends `null` for what it leaves out.
    let lower = golden.replace("\"HostConfig\"", "\"hostconfig\"");
    assert_eq!(json::from_slice::<T>(lower.as_bytes()).unwrap(), object);
}

macro_rules! golden {
    ($($name:ident: $type:ty,)*) => {$(
        #[test]
        fn $name() {
            check::<$type>(include_str!(concat!("golden/", stringify!($name), ".json")));
        }
    )*};
}

golden! {
    auth_config: AuthConfig,
    auth_response: AuthResponse,
    build_prune: BuildCachePruneReport,
    container_create_request: ContainerCreateRequest,
    container_create_response: ContainerCreateResponse,
    container_inspect: ContainerInspect,
    container_stats: ContainerStats,
    container_summary: ContainerSummary,
    container_top: ContainerTopResponse,
    container_update_request: ContainerUpdateRequest,
    container_update_response: ContainerUpdateResponse,
    container_wait: ContainerWaitResponse,
    containers_prune: ContainersPruneReport,
    disk_usage: DiskUsage,
    distribution: DistributionInspect,
    error_response: ErrorResponse,
    event: EventMessage,
    exec_create_request: ExecCreateRequest,
    exec_inspect: ExecInspect,
    exec_start_request: ExecStartRequest,
    filesystem_changes: Vec<FilesystemChange>,
    id_response: IdResponse,
    image_delete: Vec<ImageDeleteResponse>,
    image_history: Vec<ImageHistoryItem>,
    image_inspect: ImageInspect,
    image_summary: ImageSummary,
    images_prune: ImagesPruneReport,
    info: SystemInfo,
    network: Network,
    network_connect_request: NetworkConnectRequest,
    network_create_request: NetworkCreateRequest,
    network_create_response: NetworkCreateResponse,
    network_disconnect_request: NetworkDisconnectRequest,
    networks_prune: NetworksPruneReport,
    path_stat: PathStat,
    plugin: ManagedPlugin,
    plugin_privileges: Vec<PluginPrivilege>,
    progress: Vec<ProgressMessage>,
    search_results: Vec<SearchResult>,
    version: VersionResponse,
    volume: Volume,
    volume_create_request: VolumeCreateRequest,
    volume_list: VolumeListResponse,
    volumes_prune: VolumesPruneReport,
}

/// What an object says when nothing is known: `null`, empty or left out, field by field.
#[test]
fn empty() {
    let cases: Vec<(&str, String)> = vec![
        (
            r#"{"Hostname":"","Domainname":"","User":"","AttachStdin":false,"AttachStdout":false,"AttachStderr":false,"Tty":false,"OpenStdin":false,"StdinOnce":false,"Env":null,"Cmd":null,"Image":"","Volumes":null,"WorkingDir":"","Entrypoint":null,"Labels":null}"#,
            text::<ContainerConfig>(),
        ),
        ("{}", text::<ContainerCreateRequest>()),
        (r#"{"Id":"","Warnings":[]}"#, text::<ContainerCreateResponse>()),
        ("{}", text::<Mount>()),
        (
            r#"{"Source":"","Destination":"","Mode":"","RW":false,"Propagation":""}"#,
            text::<MountPoint>(),
        ),
        ("{}", text::<ImageConfig>()),
        ("{}", text::<DiskUsage>()),
        ("{}", text::<VolumeCreateRequest>()),
        (r#"{"Volumes":[],"Warnings":null}"#, text::<VolumeListResponse>()),
        (
            r#"{"Driver":"","Labels":null,"Mountpoint":"","Name":"","Options":null,"Scope":""}"#,
            text::<Volume>(),
        ),
        (r#"{"Type":"","Action":"","Actor":{"ID":"","Attributes":{}}}"#, text::<EventMessage>()),
        (r#"{"StatusCode":0}"#, text::<ContainerWaitResponse>()),
        (r#"{"Driver":"","Options":null,"Config":null}"#, text::<Ipam>()),
        (r#"{"LastTagTime":"0001-01-01T00:00:00Z"}"#, text::<ImageMetadata>()),
        ("{}", text::<ProgressMessage>()),
        (
            r#"{"NodeID":"","NodeAddr":"","LocalNodeState":"inactive","ControlAvailable":false,"Error":"","RemoteManagers":null}"#,
            text::<SwarmInfo>(),
        ),
    ];
    for (wanted, got) in cases {
        assert_eq!(got, wanted);
    }
}

fn text<T: Serialize + Default>() -> String {
    serde_json::to_string(&T::default()).unwrap()
}

#[test]
fn secrets_are_not_in_debug_output() {
    let auth = AuthConfig {
        password: "hunter2".into(),
        auth: "aHVudGVyMg==".into(),
        ..Default::default()
    };
    let text = format!("{auth:?}");
    assert!(!text.contains("hunter2") && !text.contains("aHVud"));
}

#[test]
fn progress_constructors_write_what_clients_expect() {
    let line = |m: &ProgressMessage| serde_json::to_string(m).unwrap();
    assert_eq!(line(&ProgressMessage::status("a", "Pulling")), r#"{"status":"Pulling","id":"a"}"#);
    assert_eq!(
        line(&ProgressMessage::progress("a", "Waiting", ProgressDetail::default())),
        r#"{"status":"Waiting","progressDetail":{},"id":"a"}"#
    );
    assert_eq!(
        line(&ProgressMessage::failed("no space")),
        r#"{"errorDetail":{"message":"no space"},"error":"no space"}"#
    );
}
