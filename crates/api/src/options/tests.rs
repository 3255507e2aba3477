use super::*;

fn map(entries: &[(&str, &str)]) -> OptionMap {
    entries.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

#[test]
fn every_range_ends_where_it_says() {
    for spec in OPTIONS {
        let Kind::Number { min, max, default, .. } = spec.kind else { continue };
        assert!((min..=max).contains(&default), "{}", spec.name);
        for good in [min, max, default] {
            assert_eq!(spec.check(&good.to_string()).unwrap(), good.to_string(), "{}", spec.name);
        }
        let mut bad = vec![(max + 1).to_string(), "-1".into(), "x".into(), String::new()];
        bad.push("99999999999999999999".into());
        bad.extend(min.checked_sub(1).map(|n| n.to_string()));
        for value in bad {
            let error = spec.check(&value).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidOption, "{} {value}", spec.name);
            assert!(error.message.starts_with(spec.name), "{}", error.message);
            assert!(error.message.ends_with("was given"), "{}", error.message);
        }
    }
}

#[test]
fn the_table_is_the_one_that_is_documented() {
    let table: Vec<(&str, String, String, &str)> =
        OPTIONS.iter().map(|s| (s.name, s.default_value(), s.range(), s.scope.as_str())).collect();
    let expected = [
        ("al-extents", "1237", "67 .. 65534", "resource"),
        ("archive", "none", "PATH | none", "resource"),
        ("archive-base-age", "604800", "0 s .. 8640000 s", "resource"),
        ("archive-interval", "60", "1 s .. 86400 s", "resource"),
        ("archive-keep", "2592000", "0 s .. 86400000 s", "resource"),
        ("checksums", "off", "off | on", "node"),
        ("connect-int", "2", "1 s .. 120 s", "peer"),
        ("disk-timeout", "0", "0 ds .. 6000 ds", "resource"),
        ("journal-compression", "none", "none | lz4 | zstd", "resource"),
        ("journal-size", "0", "0 B .. 16 TiB", "resource"),
        ("journal-throttle", "0", "0 .. 99", "resource"),
        ("ko-count", "7", "0 .. 200", "peer"),
        ("max-in-flight-bytes", "67108864", "1 MiB .. 4 GiB", "resource"),
        ("max-in-flight-requests", "4096", "64 .. 65536", "resource"),
        ("on-no-data", "io-error", "io-error", "resource"),
        ("ping-int", "10", "1 s .. 120 s", "peer"),
        ("ping-timeout", "5", "1 ds .. 300 ds", "peer"),
        ("protocol", "C", "C", "peer"),
        ("read-hedge", "50", "0 ms .. 60000 ms", "resource"),
        ("replay-delay", "0", "0 s .. 2592000 s", "peer"),
        ("resync-in-flight", "16777216", "1 MiB .. 256 MiB", "peer"),
        ("resync-rate", "0", "0 B/s .. 8 GiB/s", "peer"),
        ("scrub-interval", "1209600", "0 s .. 86400000 s", "resource"),
        ("scrub-rate", "33554432", "0 B/s .. 8 GiB/s", "resource"),
        ("scrub-window", "always", "HH:MM-HH:MM | always", "resource"),
        ("svc-auto-up", "yes", "yes | no", "resource"),
        ("timeout", "60", "1 ds .. 600 ds", "peer"),
        ("verify-rate", "0", "0 B/s .. 8 GiB/s", "resource"),
    ];
    let expected: Vec<_> =
        expected.iter().map(|(n, d, r, s)| (*n, (*d).to_owned(), (*r).to_owned(), *s)).collect();
    assert_eq!(table, expected);
    assert!(OPTIONS.windows(2).all(|pair| pair[0].name < pair[1].name), "sorted by name");
}

#[test]
fn refusals_are_one_clear_sentence() {
    let cases = [
        ("ping-int", "500", "ping-int must be between 1 and 120 seconds; 500 was given"),
        ("ping-int", "abc", "ping-int must be between 1 and 120 seconds; \"abc\" was given"),
        ("ping-int", "", "ping-int must be between 1 and 120 seconds; nothing was given"),
        ("timeout", "0", "timeout must be between 1 and 600 tenths of a second; 0 was given"),
        ("ko-count", "201", "ko-count must be between 0 and 200; 201 was given"),
        (
            "resync-in-flight",
            "1K",
            "resync-in-flight must be between 1 MiB and 256 MiB; \"1K\" was given",
        ),
        ("protocol", "D", "protocol must be C; \"D\" was given"),
        ("protocol", "log", "protocol log is not supported by this version yet"),
        ("on-no-data", "suspend-io", "on-no-data suspend-io is not supported by this version yet"),
        (
            "scrub-window",
            "25:00-1:00",
            "scrub-window must be HH:MM-HH:MM, or always; \"25:00-1:00\" was given",
        ),
        ("nope", "1", "option nope was not found: there is no option of that name"),
    ];
    for (name, value, message) in cases {
        assert_eq!(check(name, value).unwrap_err().message, message);
    }
    for word in ["A", "B", "log"] {
        assert_eq!(check("protocol", word).unwrap_err().code, ErrorCode::NotSupportedYet);
    }
    assert_eq!(check("nope", "1").unwrap_err().code.exit_code(), 4);
}

#[test]
fn suffixes_become_plain_numbers() {
    for (name, value, canonical) in [
        ("max-in-flight-bytes", "64M", "67108864"),
        ("resync-rate", "100MiB", "104857600"),
        ("ping-int", "10s", "10"),
        ("ping-int", "2m", "120"),
        ("timeout", "6s", "60"),
        ("ping-timeout", "500ms", "5"),
        ("ping-timeout", "5ds", "5"),
        ("read-hedge", "2s", "2000"),
        ("protocol", "C", "C"),
    ] {
        assert_eq!(check(name, value).unwrap(), canonical, "{name}={value}");
    }
    for (name, value) in [("ping-int", "1500ms"), ("ko-count", "7s"), ("al-extents", "1K")] {
        assert!(check(name, value).is_err(), "{name}={value}");
    }
    assert_eq!(find("max-in-flight-bytes").unwrap().show("67108864"), "64 MiB");
    assert_eq!(find("ping-int").unwrap().show("10"), "10 s");
}

#[test]
fn a_window_may_go_over_midnight() {
    let window = |text: &str| DayWindow::parse(text).unwrap();
    let night = window("22:30-04:00");
    let inside = |w: DayWindow| (0..24 * 60).filter(|minute| w.contains(*minute)).count();
    assert!(night.contains(22 * 60 + 30) && night.contains(0) && !night.contains(4 * 60));
    assert_eq!(inside(night), 330);
    assert_eq!((inside(window("09:00-10:00")), inside(window("always"))), (60, 24 * 60));
    assert_eq!(check("scrub-window", "22:30-04:00").unwrap(), "22:30-04:00");
    for wrong in
        ["", "1:00-2:00", "01:00", "01:00-01:00", "24:00-01:00", "01:60-02:00", "+1:00-02:00"]
    {
        assert!(check("scrub-window", wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_peers_value_goes_before_the_resources() {
    let resource = map(&[("timeout", "70"), ("al-extents", "100"), ("ko-count", "junk")]);
    let peer = map(&[("timeout", "80"), ("al-extents", "200"), ("from-the-future", "1")]);
    assert_eq!(Settings::resolve(&resource, None).timeout, Duration::from_secs(7));
    let settings = Settings::resolve(&resource, Some(&peer));
    assert_eq!(settings.timeout, Duration::from_secs(8));
    assert_eq!(settings.al_extents, 100, "al-extents has no value of a peer");
    assert_eq!(settings.ko_count, 7, "what cannot be read is the default");
    let shown = find("timeout").unwrap().describe(&resource, Some(("beta", &peer)));
    assert_eq!((shown.value.as_str(), shown.peer.as_deref()), ("80", Some("beta")));
}

#[test]
fn the_defaults_are_those_of_the_table() {
    let settings = Settings::default();
    assert_eq!(settings.protocol, "C");
    assert_eq!(settings.connect_int, Duration::from_secs(2));
    assert_eq!(settings.ping_timeout, Duration::from_millis(500));
    assert_eq!(settings.max_in_flight_bytes, 64 << 20);
    assert_eq!(settings.max_in_flight_requests, 4096);
    assert_eq!((settings.resync_rate, settings.resync_in_flight), (0, 16 << 20));
    assert_eq!((settings.al_extents, settings.ko_count), (1237, 7));
}

#[test]
fn all_or_nothing() {
    let good = map(&[("timeout", "6s"), ("protocol", "C")]);
    assert_eq!(check_all(&good).unwrap(), map(&[("timeout", "60"), ("protocol", "C")]));
    assert!(check_all(&map(&[("timeout", "6s"), ("ping-int", "0")])).is_err());
}
