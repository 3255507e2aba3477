//! What is on the screen for figures that are known.

use super::figures::{Figures, Look, Peer, Row, Stage};
use super::screen::{Line, count, mebi, page, screen, span};
use super::terminal::Key;
use super::view::{Outcome, View};
use crate::args::Sort;
use holdfast_api::latency::{BUCKET_BOUNDS_MICROS, Latency, ResourceLatency, StageLatency};
use holdfast_api::status::{IoStatus, NodeStatus, PeerStatus, ResourceStatus, ResyncStatus};
use std::time::{Duration, Instant};

fn text(lines: &[Line], width: usize) -> Vec<String> {
    lines.iter().map(|line| line.render(Some(width), false)).collect()
}

fn figures() -> Figures {
    let peer = |node: &str, resync| Peer {
        node: node.into(),
        role: "Secondary".into(),
        disk: "Inconsistent".into(),
        connection: "Connected".into(),
        replication: "SyncSource".into(),
        protocol: "C".into(),
        behind_bytes: 128 << 20,
        resync,
        ..Peer::default()
    };
    let resync = ResyncStatus {
        percent: 50.0,
        bytes_done: 128 << 20,
        bytes_total: 256 << 20,
        rate_bytes_per_second: 64 << 20,
        eta_seconds: 2,
    };
    let busy = Row {
        name: "db".into(),
        size_bytes: 256 << 20,
        role: "Primary".into(),
        disk: "UpToDate".into(),
        peers_connected: 1,
        reads_per_second: 1234.0,
        writes_per_second: 5.4,
        read_bytes_per_second: 4_800_000.0,
        write_bytes_per_second: 1_288_490_188.8,
        p99_seconds: Some(0.00123),
        behind_bytes: 128 << 20,
        peers: vec![peer("beta", Some(resync)), peer("gamma", None)],
        stages: vec![Stage {
            stage: "peer".into(),
            peer: Some("beta".into()),
            op: "write".into(),
            per_second: 5.4,
            mean_seconds: 0.0004,
            p50_seconds: 0.00035,
            p99_seconds: 1.5,
        }],
        ..Row::default()
    };
    let idle = |name: &str| Row {
        name: name.into(),
        role: "Secondary".into(),
        disk: "UpToDate".into(),
        ..Row::default()
    };
    Figures {
        node: "alpha".into(),
        seconds: 1.0,
        nodes_alive: 2,
        nodes: 3,
        resources: vec![idle("web"), busy, idle("mail")],
        ..Figures::default()
    }
}

fn view() -> View {
    let mut view = View::new(Sort::Name);
    view.take(figures());
    view
}

#[test]
fn the_screen_in_80_columns_without_colour() {
    let shown = text(&screen(&view(), 80, 24), 80);
    assert_eq!(
        shown,
        [
            "holdfast top  node alpha, 2 of 3 nodes alive, over 1.0 s",
            "  NAME   ROLE DISK         PEERS   R/s   W/s R MiB/s W MiB/s    P99   BEHIND",
            "> db     Pri  UpToDate       1/2  1234   5.4    4.58    1229  1.2ms   128MiB",
            "    sync to beta [########........] 50.0 %  256 MiB  64 MiB/s  ETA 2 s",
            "  mail   Sec  UpToDate       0/0     0     0       0       0      -        -",
            "  web    Sec  UpToDate       0/0     0     0       0       0      -        -",
            "q quit  arrows select  Enter open  s sort: name  / filter  space pause  h help",
        ]
    );
    // A page for scripts has no keys, and all of each name.
    let mut long = view();
    long.figures.resources[0].name = "n".repeat(64);
    let lines = text(&page(&long), 200);
    assert!(lines.iter().any(|line| line.contains(&"n".repeat(64))));
    assert!(lines.iter().all(|line| !line.contains("quit") && !line.starts_with('>')));
    // Colours change nothing but the colours.
    let colored = screen(&view(), 80, 24)[2].render(Some(80), true);
    assert!(colored.contains("\x1b[32m UpToDate"), "{colored:?}");
    for (columns, rows) in [(40, 10), (20, 3), (80, 1), (200, 60)] {
        let shown = text(&screen(&long, columns, rows), columns);
        assert!(shown.len() <= rows.max(1) && shown.iter().all(|l| l.chars().count() <= columns));
    }
}

#[test]
fn keys_select_open_filter_sort_and_quit() {
    let mut view = view();
    let press = |view: &mut View, keys: &str| {
        let keys = keys.chars().map(|c| match c {
            '\n' => Key::Enter,
            '\x1b' => Key::Escape,
            '\x08' => Key::Backspace,
            'v' => Key::Down,
            '^' => Key::Up,
            c => Key::Char(c),
        });
        keys.map(|key| view.key(key, 10)).collect::<Vec<_>>()
    };
    let selected = |view: &View| view.selected.clone().unwrap_or_default();
    press(&mut view, "vj");
    assert_eq!(selected(&view), "web");
    press(&mut view, "v^k^^");
    assert_eq!(selected(&view), "db");
    view.key(Key::PageDown, 10);
    assert_eq!(selected(&view), "web");
    view.key(Key::Home, 10);
    view.key(Key::End, 10);
    assert_eq!(selected(&view), "web");
    view.key(Key::PageUp, 10);
    // Details, and back.
    press(&mut view, "\n");
    let details = text(&screen(&view, 80, 24), 80).join("\n");
    for part in ["db  256 MiB", "gamma", "peer beta         write       5.4  400us  350us   1.5s"] {
        assert!(details.contains(part), "{part} is missing in\n{details}");
    }
    assert!(!details.contains("web"));
    press(&mut view, "\x1b");
    assert!(view.opened().is_none());
    // Only names with these letters; what is selected is one of them.
    press(&mut view, "/we");
    assert_eq!((view.rows().len(), selected(&view)), (1, "web".into()));
    assert!(text(&screen(&view, 80, 24), 80).concat().contains("filter: we_"));
    press(&mut view, "x");
    assert_eq!(view.rows().len(), 0);
    assert!(text(&screen(&view, 80, 24), 80).concat().contains("no such resources"));
    press(&mut view, "\n\n");
    assert!(view.opened().is_none());
    press(&mut view, "/\x08\n");
    assert_eq!((view.rows().len(), view.editing), (1, false));
    press(&mut view, "\x1b");
    assert_eq!(view.rows().len(), 3);
    // In the filter q is a letter, elsewhere it is the end.
    assert_eq!(press(&mut view, "/q\x1b"), [Outcome::Draw; 3]);
    press(&mut view, "s");
    assert_eq!(view.sort, Sort::Iops);
    assert_eq!(view.figures.resources[0].name, "db");
    press(&mut view, "ssss");
    assert_eq!(view.sort, Sort::Name);
    press(&mut view, " h");
    let help = text(&screen(&view, 80, 24), 80);
    assert!(help[0].ends_with("PAUSED") && help.iter().any(|line| line.contains("keys")));
    press(&mut view, "\x1b ");
    assert!(!view.help && !view.paused);
    assert_eq!(view.key(Key::Char('q'), 10), Outcome::Quit);
    assert_eq!(view.key(Key::Interrupt, 10), Outcome::Quit);
}

#[test]
fn what_is_selected_stays_in_sight() {
    let mut view = View::new(Sort::Name);
    let row = |number: usize| Row { name: format!("r{number:02}"), ..Row::default() };
    let resources: Vec<Row> = (0..50).map(row).collect();
    view.take(Figures { resources, ..Figures::default() });
    for number in 0..50 {
        let shown = text(&screen(&view, 80, 12), 80);
        assert_eq!(shown.len(), 12);
        assert!(shown[1].trim_start().starts_with("NAME"), "{shown:?}");
        let selected = format!("> r{number:02}");
        assert!(shown.iter().any(|line| line.starts_with(&selected)), "{selected}: {shown:?}");
        view.key(Key::Down, 10);
    }
}

#[test]
fn figures_are_differences_over_the_time_between_two_looks() {
    let resource = |io: IoStatus, sent_bytes: u64| ResourceStatus {
        name: "r0".into(),
        io: Some(io),
        peers: vec![PeerStatus {
            node: "beta".into(),
            connection: "Connected".into(),
            out_of_sync_bytes: 77,
            sent_bytes,
            ..PeerStatus::default()
        }],
        ..ResourceStatus::default()
    };
    let stage = |fast: u64, slow: u64| {
        let mut buckets = vec![0; BUCKET_BOUNDS_MICROS.len() + 1];
        (buckets[0], buckets[9]) = (fast, slow);
        StageLatency {
            stage: "client".into(),
            op: "read".into(),
            count: fast + slow,
            sum_seconds: slow as f64 * 0.01,
            buckets,
            ..StageLatency::default()
        }
    };
    let began = Instant::now();
    let look = |seconds: u64, io, sent, stage| Look {
        at: began + Duration::from_secs(seconds),
        status: NodeStatus { resources: vec![resource(io, sent)], ..NodeStatus::default() },
        latency: Latency {
            resources: vec![ResourceLatency { name: "r0".into(), stages: vec![stage] }],
            ..Latency::default()
        },
    };
    let io = |reads, read_bytes, writes, written_bytes| IoStatus {
        reads,
        read_bytes,
        writes,
        written_bytes,
        ..IoStatus::default()
    };
    let before = look(0, io(100, 1000, 10, 500), 50, stage(1000, 0));
    let now = look(2, io(300, 5000, 10, 500), 250, stage(1010, 10));
    let figures = Figures::between(&before, &now);
    let row = &figures.resources[0];
    let numbers = [
        row.reads_per_second,
        row.read_bytes_per_second,
        row.writes_per_second,
        row.write_bytes_per_second,
        row.peers[0].sent_bytes_per_second,
        row.stages[0].per_second,
        row.stages[0].mean_seconds,
    ];
    assert_eq!(numbers, [100.0, 2000.0, 0.0, 0.0, 100.0, 10.0, 0.005]);
    assert_eq!((row.peers_connected, row.behind_bytes), (1, 77));
    // The thousand quick ones were before.
    assert!(row.p99_seconds.is_some_and(|p99| p99 > 0.009 && p99 <= 0.01), "{row:?}");
    // After a restart of the resource all is new; without a request there is no latency.
    let again = look(3, io(20, 0, 0, 0), 7, stage(1, 0));
    let row = &Figures::between(&now, &again).resources[0];
    assert_eq!((row.reads_per_second, row.peers[0].sent_bytes_per_second), (20.0, 7.0));
    let row = &Figures::between(&again, &again).resources[0];
    assert_eq!((row.p99_seconds, row.stages.len()), (None, 0));
}

#[test]
fn numbers_keep_to_their_columns() {
    for (number, due) in [(0.0, "0"), (0.04, "0.0"), (9.94, "9.9"), (99_999.0, "99999")] {
        assert_eq!(count(number), due);
    }
    assert_eq!((count(123_456.0), count(12_345_678.0)), ("123k".into(), "12M".into()));
    for (bytes, due) in
        [(0.0, "0"), (10_485.76, "0.01"), (1e7, "9.54"), (1e9, "953.7"), (1e11, "95367")]
    {
        assert_eq!(mebi(bytes), due);
    }
    for (seconds, due) in
        [(0.0, "0us"), (0.000_15, "150us"), (0.012_34, "12.3ms"), (0.12, "120ms"), (10.0, "10.0s")]
    {
        assert_eq!(span(seconds), due);
    }
}
