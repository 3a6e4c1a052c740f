//! A scan with `openssl s_client`, an implementation other than rustls, which can still offer what
//! the edge must refuse.

use crate::harness::{Edge, Setup};
use crate::tls_client::{CERT, KEY};
use std::net::SocketAddr;
use std::process::{Command, Stdio};

/// The output of `s_client` about a handshake with these options. `None`: this `openssl` does not
/// know an option, or there is no `openssl`.
fn s_client(address: SocketAddr, options: &[&str]) -> Option<String> {
    let output = Command::new("openssl")
        .args(["s_client", "-connect", &address.to_string(), "-servername", "edge.test"])
        .args(["-CAfile", CERT, "-verify_hostname", "edge.test"])
        .args(options)
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let said =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    let said = said.concat();
    // `openssl` did not connect, because it does not know the option or the cipher.
    said.contains("CONNECTED").then_some(said)
}

fn start() -> Option<(Edge, SocketAddr)> {
    if Command::new("openssl").arg("version").output().is_err() {
        println!("skipped: there is no openssl here to scan with");
        return None;
    }
    let tls = format!("tls = [{{ listen = \"127.0.0.1:0\", cert = \"{CERT}\", key = \"{KEY}\" }}]");
    let edge = Setup::default().edge(&tls).start();
    let log = edge.log();
    let address = log.split("listening on https://").nth(1).unwrap().split(' ').next().unwrap();
    let address = address.parse().unwrap();
    Some((edge, address))
}

/// The line that names the negotiated version and cipher, such as `New, TLSv1.3, Cipher is …`.
fn agreed(said: &str) -> &str {
    said.lines().find(|line| line.contains("Cipher is ")).unwrap_or_default()
}

#[test]
fn what_is_safe_is_spoken() {
    let Some((_edge, address)) = start() else { return };
    for (options, expect) in [
        (&["-tls1_3"][..], "TLSv1.3"),
        (&["-tls1_2"], "TLSv1.2"),
        (&["-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-GCM-SHA384"], "ECDHE-ECDSA-AES256-GCM-SHA384"),
        (&["-tls1_2", "-cipher", "ECDHE-ECDSA-CHACHA20-POLY1305"], "ECDHE-ECDSA-CHACHA20-POLY1305"),
        (&["-tls1_3", "-ciphersuites", "TLS_AES_128_GCM_SHA256"], "TLS_AES_128_GCM_SHA256"),
        (&["-tls1_3", "-groups", "X25519"], "TLSv1.3"),
        (&["-tls1_3", "-groups", "P-256"], "TLSv1.3"),
    ] {
        let said = s_client(address, options).expect("every openssl speaks this");
        assert!(agreed(&said).contains(expect), "{options:?}: {said}");
        assert!(said.contains("Verify return code: 0 (ok)"), "{options:?}: {said}");
        assert!(said.contains("Compression: NONE"), "{options:?}: {said}");
    }
    let said = s_client(address, &["-alpn", "h2,http/1.1"]).unwrap();
    assert!(said.contains("ALPN protocol: h2"), "{said}");
    let said = s_client(address, &["-alpn", "http/1.1"]).unwrap();
    assert!(said.contains("ALPN protocol: http/1.1"), "{said}");
    let said = s_client(address, &["-tls1_2"]).unwrap();
    assert!(said.contains("Secure Renegotiation IS supported"), "{said}");
    assert!(said.contains("Extended master secret: yes"), "{said}");
}

#[test]
fn what_is_not_safe_is_refused() {
    let Some((edge, address)) = start() else { return };
    let mut asked = 0;
    for options in [
        // Level 0 lets a current openssl offer ciphers that it would itself refuse.
        &["-ssl3"][..],
        &["-tls1", "-cipher", "ALL:@SECLEVEL=0"],
        &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"],
        &["-tls1_2", "-cipher", "NULL:@SECLEVEL=0"],
        &["-tls1_2", "-cipher", "aNULL:@SECLEVEL=0"],
        &["-tls1_2", "-cipher", "3DES:@SECLEVEL=0"],
        &["-tls1_2", "-cipher", "RC4:@SECLEVEL=0"],
        &["-tls1_2", "-cipher", "kRSA:@SECLEVEL=0"],
        &["-tls1_2", "-cipher", "kDHE:@SECLEVEL=0"],
        // Block ciphers with a MAC of SHA-1 or SHA-2, whatever the key exchange.
        &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA:ECDHE-ECDSA-AES256-SHA384:@SECLEVEL=0"],
        &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-CCM8:@SECLEVEL=0"],
        &["-tls1_3", "-groups", "P-521"],
    ] {
        let Some(said) = s_client(address, options) else {
            println!("{options:?}: this openssl cannot ask for it");
            continue;
        };
        asked += 1;
        assert!(agreed(&said).ends_with("(NONE)"), "{options:?} was accepted: {said}");
    }
    assert!(asked >= 5, "this openssl could ask for {asked} only");
    assert_eq!(edge.event("_a=62515&_n=a").status, 200);
}
