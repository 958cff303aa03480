//! Boot scripts: a plan of [`policy`](crate::fleet::policy), said in iPXE's language.
//!
//! The templates are `ipxe-scripts/*.ipxe`, compiled in. They use only what iPXE has had since 2019, which distributions
//! still ship, and each ends by leaving to the machine's next boot device. What is put into them is checked here: iPXE
//! splits lines at spaces and expands `${..}`, so a value with either could become a command.
//!
//! Not here: who a machine is, and which file name asks for a script.

use std::net::{Ipv4Addr, SocketAddrV4};

use askama::Template;

use crate::fleet::policy::Plan;
use crate::fleet::web::{self, authority, script_url};
use crate::fleet::{Client, Mac, Naming, Secrets};

/// What the server calls itself in CHAP.
pub const CHAP_SERVER: &str = "roost";
/// How often a client tries to open its disk. With [`PAUSE_S`] these are two and a half minutes: a server that starts
/// again, with its file systems to check, is back by then.
pub const TRIES: u32 = 30;
/// Seconds between two tries.
pub const PAUSE_S: u32 = 5;
/// How often a machine tries to get its script, [`PAUSE_S`] apart: a switch with spanning tree opens a port 30 to 50 s after
/// its link came up, and some loaders take it down once more.
pub const SCRIPT_TRIES: u32 = 12;
/// Seconds for which the last words stay on the screen before firmware clears it.
pub const READING_S: u32 = 20;

/// What scripts need to know of this server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Where the iSCSI target listens, as machines reach it.
    pub iscsi: SocketAddrV4,
    /// Where scripts are served by HTTP, as machines reach it.
    pub http: SocketAddrV4,
    /// How clients' iSCSI names are made.
    pub naming: Naming,
}

/// Why no script could be rendered.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// A value that iPXE would not read as one word.
    #[error("`{value}` cannot stand in a boot script: iPXE would split it or expand it; check `iqn` in roost.toml")]
    Word {
        /// The value.
        value: String,
    },
    /// The template engine failed, which it does only when memory runs out.
    #[error("the boot script could not be rendered: {0}")]
    Template(#[from] askama::Error),
}

#[derive(Template)]
#[template(path = "boot.ipxe", config = "ipxe-scripts/askama.toml")]
struct Boot<'a> {
    name: &'a str,
    initiator: &'a str,
    target: &'a str,
    root: &'a str,
    server: SocketAddrV4,
    no_gateway: bool,
    chap: bool,
    secrets: Option<&'a Secrets>,
    chap_server: &'a str,
    tries: u32,
    pause: u32,
    reading: u32,
}

#[derive(Template)]
#[template(path = "off.ipxe", config = "ipxe-scripts/askama.toml")]
struct Off<'a> {
    name: &'a str,
    mac: Mac,
    server: Ipv4Addr,
    reading: u32,
}

#[derive(Template)]
#[template(path = "unknown.ipxe", config = "ipxe-scripts/askama.toml")]
struct Unknown {
    mac: Mac,
    server: Ipv4Addr,
    reading: u32,
}

#[derive(Template)]
#[template(path = "nameless.ipxe", config = "ipxe-scripts/askama.toml")]
struct Nameless<'a> {
    authority: &'a str,
    reading: u32,
}

#[derive(Template)]
#[template(path = "chain.ipxe", config = "ipxe-scripts/askama.toml")]
struct Chain<'a> {
    authority: &'a str,
    url: &'a str,
    tries: u32,
    pause: u32,
    reading: u32,
}

/// The script of the machine with this MAC. `secrets` are its client's: only for an address that is known to be its own.
///
/// # Errors
/// A name that iPXE would not read as one word.
pub fn render(plan: Plan<'_>, mac: Mac, server: &Server, secrets: Option<&Secrets>) -> Result<String, ScriptError> {
    let here = *server.iscsi.ip();
    match plan {
        Plan::Boot(client) => boot(client, server, secrets),
        Plan::Off(client) => text(&Off { name: client.name.as_str(), mac, server: here, reading: READING_S }),
        Plan::Unknown => text(&Unknown { mac, server: here, reading: READING_S }),
    }
}

/// The script for who asked without saying a MAC address. HTTP says nothing of a failed request on a machine's screen, so
/// this is a script too.
///
/// # Errors
/// Only when memory runs out.
pub fn nameless(server: &Server) -> Result<String, ScriptError> {
    text(&Nameless { authority: &authority(server.http), reading: READING_S })
}

/// The script that makes a machine fetch its own: the same for all, because each fills in its own MAC. iPXE looks for it
/// under the name `autoexec.ipxe` beside the file that it was loaded from.
///
/// # Errors
/// Only when memory runs out.
pub fn chain(server: &Server) -> Result<String, ScriptError> {
    let authority = authority(server.http);
    let url = script_url(server.http);
    text(&Chain { authority: &authority, url: &url, tries: SCRIPT_TRIES, pause: PAUSE_S, reading: READING_S })
}

/// DHCP's root path and `sanboot`'s argument for this client: `iscsi:SERVER:PROTOCOL:PORT:LUN:TARGET` (RFC 4173 §5). The
/// disk is LUN 0 and the protocol TCP, which are what empty fields mean; the LUN is written out for the reader.
#[must_use]
pub fn root_path(client: &Client, server: &Server) -> String {
    web::root_path(server.iscsi, &server.naming.target(&client.name))
}

fn boot(client: &Client, server: &Server, secrets: Option<&Secrets>) -> Result<String, ScriptError> {
    let initiator = server.naming.initiator(&client.name);
    let target = server.naming.target(&client.name);
    one_word(&initiator)?;
    one_word(&target)?;
    let secrets = secrets.filter(|_| client.chap);
    for secret in secrets.iter().flat_map(|secrets| [&secrets.machine, &secrets.server]) {
        // The error would tell it.
        one_word(secret).map_err(|_| ScriptError::Word { value: "a secret".to_owned() })?;
    }
    text(&Boot {
        name: client.name.as_str(),
        initiator: &initiator,
        target: &target,
        root: &root_path(client, server),
        server: server.iscsi,
        no_gateway: client.start.no_gateway,
        chap: client.chap,
        secrets,
        chap_server: CHAP_SERVER,
        tries: TRIES,
        pause: PAUSE_S,
        reading: READING_S,
    })
}

fn one_word(value: &str) -> Result<(), ScriptError> {
    match value.bytes().all(|b| b.is_ascii_graphic() && b != b'$') {
        true => Ok(()),
        false => Err(ScriptError::Word { value: value.to_owned() }),
    }
}

/// The template engine drops the last newline.
fn text(template: &impl Template) -> Result<String, ScriptError> {
    let mut text = template.render()?;
    text.push('\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::policy::boot_plan;
    use crate::fleet::{DiskPolicy, Fleet, Initiators, Start};

    fn server(iscsi: u16, http: u16) -> Server {
        let at = |port| SocketAddrV4::new(Ipv4Addr::new(10, 20, 0, 2), port);
        Server { iscsi: at(iscsi), http: at(http), naming: Naming::new("iqn.2026-11.internal.roost") }
    }

    fn mac() -> Mac {
        "52:54:00:aa:00:01".parse().unwrap()
    }

    fn fleet(off: bool) -> Fleet {
        Fleet::new([Client {
            name: "pc-01".parse().unwrap(),
            group: None,
            macs: vec![mac()],
            port: None,
            options: Vec::new(),
            ip: None,
            image: "debian-12".parse().unwrap(),
            disk: DiskPolicy::Keep,
            initiators: Initiators::OwnOnly,
            chap: false,
            read_only: false,
            off,
            title: None,
            note: None,
            limit: None,
            start: Default::default(),
            data: None,
        }])
        .unwrap()
    }

    #[test]
    fn a_client_opens_its_disk_and_tries_again_for_a_while() {
        let fleet = fleet(false);
        let script = render(boot_plan(&fleet, mac()), mac(), &server(3260, 80), None).unwrap();
        let expected = "\
#!ipxe
# pc-01 boots from its own disk.
set initiator-iqn iqn.2026-11.internal.roost:client.pc-01
set hostname pc-01
set try:int32 0
:boot
inc try
echo Roost: this machine is pc-01. Opening its disk, try ${try} of 30.
sanboot iscsi:10.20.0.2:::0:iqn.2026-11.internal.roost:pc-01 || goto failed
:failed
echo
echo Roost: pc-01 did not boot from its disk. The line above says why.
echo Roost: disk iqn.2026-11.internal.roost:pc-01 on 10.20.0.2:3260
iseq ${try} 30 && goto give_up ||
echo Roost: the server may be starting again; next try in 5 s. Ctrl-C gives up.
sleep 5 || goto give_up
goto boot
:give_up
echo
echo Roost: pc-01 gives up. On the server, see: roost client show pc-01
echo Roost: then start this machine again. Leaving to the next boot device.
sleep 20 ||
exit 1
";
        assert_eq!(script, expected);
    }

    #[test]
    fn a_client_with_chap_is_told_its_secrets_and_who_must_not_know_them_is_told_that() {
        let fleet = Fleet::new(fleet(false).clients().map(|client| Client { chap: true, ..client.clone() })).unwrap();
        let secrets = Secrets { machine: "Abcdefghijklmn._".to_owned(), server: "0123456789abcdef".to_owned() };
        let script = |secrets| render(boot_plan(&fleet, mac()), mac(), &server(3260, 80), secrets).unwrap();
        let told = "\
set hostname pc-01
set username pc-01
set password Abcdefghijklmn._
set reverse-username roost
set reverse-password 0123456789abcdef
set try:int32 0
";
        assert!(script(Some(&secrets)).contains(told), "{}", script(Some(&secrets)));
        let without = script(None);
        assert!(!without.contains("password"), "{without}");
        assert!(without.contains("\necho Roost: its CHAP secret is not told to this address"), "{without}");
        let none =
            render(boot_plan(&super::tests::fleet(false), mac()), mac(), &server(3260, 80), Some(&secrets)).unwrap();
        assert!(!none.contains("password"), "a client without CHAP has no secrets");
    }

    #[test]
    fn a_client_that_must_not_see_its_gateway_hides_it_before_it_opens_its_disk() {
        let start = Start { no_gateway: true, ..Start::default() };
        let fleet =
            Fleet::new(fleet(false).clients().map(|client| Client { start: start.clone(), ..client.clone() })).unwrap();
        let script = render(boot_plan(&fleet, mac()), mac(), &server(3260, 80), None).unwrap();
        let (before, after) = script.split_once("\nset netX/gateway 0.0.0.0\n").unwrap();
        assert!(!before.contains("sanboot") && after.contains("sanboot"), "{script}");
    }

    #[test]
    fn an_unknown_machine_is_told_its_line_for_the_mapping_file() {
        let script = render(Plan::Unknown, mac(), &server(3260, 80), None).unwrap();
        let expected = "\
#!ipxe
# A machine that stands in no client's place: it gets no disk.
echo
echo Roost: no client has the MAC address 52:54:00:aa:00:01, so it gets no disk.
echo Roost: to give it one, add under [clients] in roost.toml on 10.20.0.2:
echo
echo new-name = \"52:54:00:aa:00:01\"
echo
echo Roost: then start this machine again. Leaving to the next boot device.
sleep 20 ||
exit 1
";
        assert_eq!(script, expected);
    }

    #[test]
    fn a_client_out_of_service_is_told_so() {
        let fleet = fleet(true);
        let script = render(boot_plan(&fleet, mac()), mac(), &server(3260, 80), None).unwrap();
        let expected = "\
#!ipxe
# A client that is out of service.
echo
echo Roost: this machine is pc-01, MAC 52:54:00:aa:00:01. It is out of service:
echo Roost: roost.toml on 10.20.0.2 says \"off = true\" for it. Take that out and
echo Roost: start this machine again. Leaving to the next boot device.
sleep 20 ||
exit 1
";
        assert_eq!(script, expected);
    }

    #[test]
    fn the_hook_leads_to_the_machines_own_script() {
        let expected = "\
#!ipxe
# The same for every machine: configures the network, if firmware has not, and fetches the machine's own script.
set try:int32 0
isset ${ip} && goto fetch ||
:configure
dhcp || goto again
:fetch
chain --replace http://10.20.0.2:8080/boot.ipxe?mac=${mac:hexhyp} ||
:again
inc try
iseq ${try} 12 && goto failed ||
echo Roost: no boot script yet, try ${try} of 12. Some switches need 30 s.
sleep 5 || goto failed
goto configure
:failed
echo
echo Roost: 10.20.0.2:8080 gave no boot script. The line above says why.
echo Roost: check the cable and that Roost runs, then start this machine again.
echo Roost: leaving to the next boot device.
sleep 20 ||
exit 1
";
        assert_eq!(chain(&server(3260, 8080)).unwrap(), expected);
    }

    #[test]
    fn who_named_no_machine_is_told_how() {
        let script = nameless(&server(3260, 80)).unwrap();
        assert!(script.contains("\necho chain http://10.20.0.2/boot.ipxe?mac=${mac:hexhyp}\n"), "{script}");
        assert!(script.ends_with("\nexit 1\n"), "{script}");
    }

    #[test]
    fn every_line_fits_a_screen_of_80_columns() {
        let (on, off, server) = (fleet(false), fleet(true), server(3260, 8080));
        let plans = [boot_plan(&on, mac()), boot_plan(&off, mac()), Plan::Unknown];
        let mut scripts: Vec<String> = plans.map(|plan| render(plan, mac(), &server, None).unwrap()).into();
        scripts.extend([chain(&server).unwrap(), nameless(&server).unwrap()]);
        for shown in scripts.iter().flat_map(|script| script.lines()).filter_map(|line| line.strip_prefix("echo ")) {
            assert!(shown.len() < 80, "{shown}");
        }
    }

    #[test]
    fn a_port_is_named_only_where_it_is_not_the_usual_one() {
        let fleet = fleet(false);
        let client = fleet.by_mac(mac()).unwrap();
        assert_eq!(root_path(client, &server(3260, 80)), "iscsi:10.20.0.2:::0:iqn.2026-11.internal.roost:pc-01");
        assert_eq!(root_path(client, &server(3261, 80)), "iscsi:10.20.0.2::3261:0:iqn.2026-11.internal.roost:pc-01");
    }

    #[test]
    fn a_prefix_that_would_become_a_command_is_refused() {
        let fleet = fleet(false);
        for prefix in ["iqn.2026-11.x && shell", "iqn.${mac}", "iqn.2026-11.x\nshell", "iqn.2026-11.ü"] {
            let server = Server { naming: Naming::new(prefix), ..server(3260, 80) };
            let error = render(boot_plan(&fleet, mac()), mac(), &server, None).unwrap_err();
            assert!(matches!(error, ScriptError::Word { .. }), "{prefix}");
        }
    }
}
