// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! gethostlatency: how long programs wait for host names to be looked up.

use std::fs::File;
use std::path::PathBuf;

use bpfscope::net;
use bpfscope::prelude::*;
use bpfscope::session;
use bpfscope::uprobe::Function;
use bpfscope::uprobe::Libraries;

bpf!("gethostlatency");
use bpf::types;

/// Trace host name lookups by the C library, with their latency
#[derive(clap::Args)]
pub struct Args {
    /// Probe this C library instead of those that processes use
    #[arg(short, long, value_name = "PATH", value_parser = library)]
    libc: Option<PathBuf>,
}

fn library(path: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(path);
    match path.metadata() {
        Ok(data) if data.is_file() => Ok(path),
        Ok(_) => Err("not a file".into()),
        Err(error) => Err(error.to_string()),
    }
}

const fn function(symbol: &'static str, enter: &'static str, exit: &'static str) -> Function {
    Function { symbol, enter, exit }
}

/// In the order of `enum function`.
const FUNCTIONS: [Function; 5] = [
    function("getaddrinfo", "getaddrinfo_enter", "getaddrinfo_exit"),
    function("gethostbyname", "gethostbyname_enter", "gethostbyname_exit"),
    function("gethostbyname2", "gethostbyname2_enter", "gethostbyname2_exit"),
    function("gethostbyname_r", "gethostbyname_r_enter", "gethostbyname_r_exit"),
    function("gethostbyname2_r", "gethostbyname2_r_enter", "gethostbyname2_r_exit"),
];

/// The C libraries of GNU and musl, by the names of their files: libc.so.6, libc-2.31.so, libc.so,
/// ld-musl-x86_64.so.1, libc.musl-x86_64.so.1.
fn is_libc(name: &[u8]) -> bool {
    name == b"libc.so"
        || [&b"libc.so."[..], b"libc-", b"ld-musl-", b"libc.musl-"]
            .iter()
            .any(|start| name.starts_with(start))
}

/// What getaddrinfo() returns, as both libraries number it.
fn eai(error: i32) -> Option<&'static str> {
    Some(match error {
        -1 => "EAI_BADFLAGS",
        -2 => "EAI_NONAME",
        -3 => "EAI_AGAIN",
        -4 => "EAI_FAIL",
        -5 => "EAI_NODATA",
        -6 => "EAI_FAMILY",
        -7 => "EAI_SOCKTYPE",
        -8 => "EAI_SERVICE",
        -9 => "EAI_ADDRFAMILY",
        -10 => "EAI_MEMORY",
        -11 => "EAI_SYSTEM",
        -12 => "EAI_OVERFLOW",
        -105 => "EAI_IDN_ENCODE",
        _ => return None,
    })
}

/// The values of h_errno.
fn h_errno(error: i32) -> Option<&'static str> {
    Some(match error {
        -1 => "NETDB_INTERNAL",
        1 => "HOST_NOT_FOUND",
        2 => "TRY_AGAIN",
        3 => "NO_RECOVERY",
        4 => "NO_DATA",
        _ => return None,
    })
}

/// The address families that can be asked for.
fn family(number: i32) -> Option<&'static str> {
    match number {
        0 => Some("any"),
        2 => Some("inet"),
        10 => Some("inet6"),
        _ => None,
    }
}

impl Tool for Args {
    type Bpf = bpf::Object;

    const DOC: Doc = Doc {
        description: "\
Shows each call of getaddrinfo(), gethostbyname(), gethostbyname2() and the two reentrant forms of \
these, when it returns: who called it, how long it took, and for which name. Where one of them calls \
another inside of the library, only what the program called is shown.

All copies of the GNU C library and of musl that processes have mapped are probed, also those of \
containers and those that were deleted by an upgrade, and those that are mapped while the tool runs. \
-p looks only at what these processes have mapped, and costs the others nothing.

The fields failed and error say what came of it: an EAI_ name of getaddrinfo(), the h_errno of the \
others (HOST_NOT_FOUND and so on). family is what was asked for, address the first address of the \
answer.",
        examples: "\
Is it the name service that is slow?

    # gethostlatency
    TIME     PID     COMM             LATms      HOST
    09:14:22 2101    curl             18.412     www.example.com
    09:14:27 2102    backup           5003.870   nfs.example.net

Which names cannot be found, by whom?

    # gethostlatency --fields +error --filter 'failed = true'

What does one container look up?

    # gethostlatency --container web --output json",
        overhead: "\
Some microseconds a lookup, which itself takes much longer. Whenever a process maps a library, the \
tool looks at its name.",
        limits: "\
Names that are looked up without these functions are not seen: by Go programs and others with \
resolvers of their own, by statically linked programs, by getaddrinfo_a(), and by 32-bit programs. A \
lookup that a process makes in the first moments after it was the first to map a library may be \
missed. A call that is left by longjmp() or by the end of the thread is not shown; nor is one \
without a name. Why gethostbyname() failed is known where the library asks one of the reentrant \
forms.",
    };
    const QUESTION: Question =
        Question { heading: "Network", question: "How long do programs wait for host names?" };
    const LETTERS: &'static [(&'static str, char)] = &[("pid", 'p')];

    fn ways(&self) -> Vec<Way> {
        let programs: Vec<&'static str> =
            FUNCTIONS.iter().flat_map(|function| [function.exit, function.enter]).collect();
        vec![
            // Task-local storage for programs of this kind: a10787e6d58c "bpf: Enable task local
            // storage for tracing programs" (5.12).
            Way::new("uprobe", &[]).by_hand(&programs).only_where("task_struct", "bpf_storage"),
            Way::new("uprobe_hash", &[]).by_hand(&programs),
        ]
    }

    fn records(&self) -> Records {
        let kind = Kind::event("lookup")
            .field("function", Type::String, "What was called.")
            .field("host", Type::String, "The name that was looked up.")
            .field("family", Type::Name, "Addresses that were asked for: any, inet or inet6.")
            .field("failed", Type::Bool, "Whether there was no answer.")
            .field("error", Type::Name, "Why: a name of EAI_* or of h_errno; null when it did not fail or that is not known.")
            .field("address", Type::Ip, "The first address of the answer.")
            .field("lat_ns", Type::Uint, "How long it took.")
            .columns([
                time_column("TIME", 8, TimeFormat::Wall).when(true),
                column("pid", "PID", 7),
                column("comm", "COMM", 16),
                column("lat_ns", "LATms", 10).format(Format::Millis(3)),
                column("error", "ERROR", 14).null("-").when(false),
                column("address", "ADDRESS", 15).null("-").when(false),
                column("host", "HOST", 0),
            ]);
        Records::new([kind])
    }

    fn attach(&self, skel: &bpf::Skel<'_>, common: &Common, asides: &mut Asides) -> Result<()> {
        use libbpf_rs::skel::Skel as _;
        let object = skel.object();
        let libraries = match &self.libc {
            Some(path) => File::open(path)
                .map_err(anyhow::Error::from)
                .and_then(|file| Libraries::in_file(object, &FUNCTIONS, &file, &common.pid))
                .with_context(|| path.display().to_string())?,
            None => Libraries::everywhere(object, &FUNCTIONS, is_libc, &common.pid)?,
        };
        asides.add(libraries);
        Ok(())
    }

    fn configure(&self, open: &mut bpf::OpenSkel<'_>, way: &Way) -> Result<()> {
        let stored = way.name == "uprobe";
        let settings = open.maps.rodata_data.as_deref_mut().context("no .rodata")?;
        settings.calls_in_storage = stored;
        open.maps.calls_storage.set_autocreate(stored)?;
        open.maps.calls_hash.set_autocreate(!stored)?;
        Ok(())
    }

    fn run(&self, skel: &bpf::Skel<'_>, session: &mut Session<'_>) -> Result<()> {
        session.stream(&skel.maps.events, show)
    }
}

fn show(record: Event<'_>, out: &mut Output) -> Result<()> {
    let event: &types::event = record.body()?;
    let (host, _) = session::split(record.tail::<types::event>(), event.host_size);
    let of = FUNCTIONS.get(event.function.0 as usize);
    let is_info = event.function == types::function::GETADDRINFO;
    let name = if is_info { eai(event.error) } else { h_errno(event.error) };
    out.event(
        0,
        record.head()?,
        &[
            of.map_or(Value::Null, |function| Value::Str(function.symbol)),
            if event.host_cut != 0 { Value::Cut(host) } else { Value::Bytes(host) },
            Value::Name(family(event.family), event.family.into()),
            Value::Bool(event.failed != 0),
            match (event.failed, event.error_known) {
                (0, _) => Value::Name(None, 0),
                (_, 0) => Value::Null,
                _ => Value::Name(name, event.error.into()),
            },
            net::ip(event.version, event.address),
            Value::Uint(event.lat_ns),
        ],
    );
    Ok(())
}

fn main() -> ExitCode {
    bpfscope::main::<Args>()
}
