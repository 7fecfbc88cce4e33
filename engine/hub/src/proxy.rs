//! The proxy through which the hub is asked, and which hosts are asked without one: the environment variables
//! that curl and Python's `requests` know, with the same meaning.
//!
//! A proxy that is named is used or the error of whoever asked: a request never goes around it.

#![forbid(unsafe_code)]

use std::net::IpAddr;

use crate::error::{Error, ErrorKind, Result};

/// Of an address that begins with `https://`; of any other the first two pairs change places. The last pair is
/// for the other scheme: a redirect may lead there, and who has named one proxy wants no direct connections.
const HTTPS_VARIABLES: [&str; 6] = [
    "HTTPS_PROXY",
    "https_proxy",
    "ALL_PROXY",
    "all_proxy",
    "HTTP_PROXY",
    "http_proxy",
];
const HTTP_VARIABLES: [&str; 6] = [
    "HTTP_PROXY",
    "http_proxy",
    "ALL_PROXY",
    "all_proxy",
    "HTTPS_PROXY",
    "https_proxy",
];

/// A proxy, and who is asked without it.
#[derive(Clone)]
pub(crate) struct Proxy {
    pub(crate) proxy: ureq::Proxy,
    /// The variable that names it, for error texts: its value may hold a password.
    pub(crate) variable: &'static str,
    direct: Vec<String>,
}

impl Proxy {
    /// The proxy that the environment names for an endpoint; `variable` looks up a variable that is not empty.
    pub(crate) fn from(
        endpoint: &str,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>> {
        let names = match endpoint.starts_with("https://") {
            true => HTTPS_VARIABLES,
            false => HTTP_VARIABLES,
        };
        let named = names
            .into_iter()
            .find_map(|name| Some((name, variable(name)?)));
        let Some((name, address)) = named else {
            return Ok(None);
        };
        let Some(proxy) = parse(address.trim()) else {
            let text = format!(
                "{name}: not the address of a proxy, expected one such as http://HOST:PORT, or with https, socks4, \
                 socks4a, socks5 or socks5h in front"
            );
            return Err(Error::new(ErrorKind::Argument, text));
        };
        let direct = variable("NO_PROXY")
            .or_else(|| variable("no_proxy"))
            .unwrap_or_default();
        let entries = direct
            .split([',', ' ', '\t'])
            .filter(|entry| !entry.is_empty());
        Ok(Some(Proxy {
            proxy,
            variable: name,
            direct: entries.map(str::to_ascii_lowercase).collect(),
        }))
    }

    /// Whether an address is asked without the proxy.
    pub(crate) fn spares(&self, url: &str) -> bool {
        let Some((scheme, rest)) = url.split_once("://") else {
            return false;
        };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let authority = authority.rsplit('@').next().unwrap_or_default();
        let default_port = if scheme == "https" { "443" } else { "80" };
        let (host, port) = split_port(authority);
        let (host, port) = (host.to_ascii_lowercase(), port.unwrap_or(default_port));
        self.direct.iter().any(|entry| is_of(&host, port, entry))
    }
}

fn parse(address: &str) -> Option<ureq::Proxy> {
    let proxy = ureq::Proxy::new(address).ok()?;
    // A port that is none would count as not given.
    let authority = proxy.uri().authority()?.as_str();
    let (host, port) = split_port(authority.rsplit('@').next()?);
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
    (!host.is_empty() && port.is_none_or(is_port)).then_some(proxy)
}

/// Host and port; an IPv6 address may stand in brackets.
fn split_port(authority: &str) -> (&str, Option<&str>) {
    if let Some((host, rest)) = authority
        .strip_prefix('[')
        .and_then(|it| it.split_once(']'))
    {
        return (host, rest.strip_prefix(':'));
    }
    match authority.split_once(':') {
        Some((host, port)) if !port.contains(':') => (host, Some(port)),
        _ => (authority, None),
    }
}

/// Whether a host is one of those that an entry of NO_PROXY names: all, a network, or a domain with all below
/// it; with a port that one alone.
fn is_of(host: &str, port: &str, entry: &str) -> bool {
    if entry == "*" {
        return true;
    }
    if let (Some((network, bits)), Ok(address)) = (entry.split_once('/'), host.parse()) {
        return is_in_network(address, network, bits).unwrap_or(false);
    }
    let (name, only_port) = split_port(entry);
    let name = name.trim_start_matches('*').trim_start_matches('.');
    // The root of all names may be written or not.
    let (host, name) = (without_root(host), without_root(name));
    let is_same = match (host.parse::<IpAddr>(), name.parse::<IpAddr>()) {
        (Ok(address), Ok(named)) => address == named,
        // Below an address there is nothing.
        (Ok(_), Err(_)) => false,
        _ => {
            let sub = host.strip_suffix(name);
            sub.is_some_and(|sub| sub.is_empty() || sub.ends_with('.'))
        }
    };
    let is_host = !name.is_empty() && is_same;
    is_host && only_port.is_none_or(|only| only == port)
}

fn without_root(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

fn is_in_network(address: IpAddr, network: &str, bits: &str) -> Option<bool> {
    let (address, network, n_bits) = match (address, network.parse().ok()?) {
        (IpAddr::V4(address), IpAddr::V4(network)) => {
            let wide = |address: std::net::Ipv4Addr| u128::from(address.to_bits()) << 96;
            (wide(address), wide(network), 32)
        }
        (IpAddr::V6(address), IpAddr::V6(network)) => (address.to_bits(), network.to_bits(), 128),
        _ => return None,
    };
    let bits: u32 = bits.parse().ok().filter(|bits| *bits <= n_bits)?;
    // All bits are alike where none count.
    Some((address ^ network).checked_shr(128 - bits).unwrap_or(0) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(endpoint: &str, variables: &[(&str, &str)]) -> Result<Option<Proxy>> {
        let variable = |name: &str| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Proxy::from(endpoint, &variable)
    }

    #[test]
    fn the_variable_of_the_scheme_comes_first_and_any_is_better_than_none() {
        let all = HTTPS_VARIABLES.map(|name| (name, "http://p:1"));
        for (endpoint, names) in [("https://h", HTTPS_VARIABLES), ("http://h", HTTP_VARIABLES)] {
            for name in names {
                let only = proxy(endpoint, &[(name, "socks5://p:1")])
                    .expect("right")
                    .expect("named");
                assert_eq!(only.variable, name);
            }
            let first = proxy(endpoint, &all).expect("right").expect("named");
            assert_eq!(first.variable, names[0]);
        }
        assert!(proxy("https://h", &[]).expect("right").is_none());
    }

    #[test]
    fn what_is_no_proxy_is_refused_without_showing_it() {
        for bad in [
            "://secret",
            "ftp://u:secret@h",
            "http://secret:99999",
            "http://secret:x",
            "secret bad",
            "http://",
            "socks6://secret",
        ] {
            let error = proxy(
                "https://h",
                &[("HTTPS_PROXY", bad), ("ALL_PROXY", "http://p:1")],
            );
            let Err(error) = error else {
                panic!("{bad}");
            };
            let text = error.to_string();
            assert!(
                text.starts_with("HTTPS_PROXY: ") && !text.contains("secret"),
                "{text}"
            );
        }
    }

    #[test]
    fn hosts_are_spared() {
        for (entries, url, expected) in [
            ("*", "https://h.co/a", true),
            ("h.co", "https://h.co", true),
            ("h.co", "https://cdn.h.co/a?b", true),
            (".h.co", "https://cdn.H.co", true),
            ("*.h.co", "https://cdn.h.co", true),
            ("h.co", "https://oh.co", false),
            ("a, h.co ,b", "https://h.co", true),
            ("h.co:8443", "https://h.co", false),
            ("h.co:443", "https://h.co", true),
            ("127.0.0.0/8", "http://127.0.0.1:99/a", true),
            ("10.0.0.0/8,::1", "http://127.0.0.1", false),
            ("::1", "http://[::1]:8", true),
            ("0.0.0.0/0", "http://1.2.3.4", true),
            ("1.2.3.4/32", "http://1.2.3.5", false),
            ("", "https://h.co", false),
            (".", "https://h.co", false),
            ("0.0.1", "http://127.0.0.1", false),
            (".0.1,1", "http://127.0.0.1", false),
            ("127.0.0.1", "http://127.0.0.1:8", true),
            ("0:0::1", "http://[::1]", true),
            ("localhost.", "http://localhost", true),
            ("localhost", "http://localhost.:8", true),
            ("h.co.", "https://cdn.h.co", true),
        ] {
            let variables = [("ALL_PROXY", "http://p:1"), ("NO_PROXY", entries)];
            let proxy = proxy("https://h", &variables)
                .expect("right")
                .expect("named");
            assert_eq!(proxy.spares(url), expected, "{entries:?} {url}");
        }
    }
}
