//! The laboratory: real servers (systemd as PID 1, sshd, a disk that survives
//! a power cut) and a real musl builder, each a Docker container.
//!
//! Everything made here carries the label `cutover-test`. What a killed test
//! run left behind is found with `docker ps -a --filter label=cutover-test`.

use std::{
    collections::hash_map::DefaultHasher,
    env,
    fs::{self, File, OpenOptions},
    hash::{Hash, Hasher},
    io::Write,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    process::{self, Output},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use xshell::{Cmd, Shell, TempDir, cmd};

/// What the images are based on, where it can be pulled.
const DEBIAN: &str = "debian:bookworm-slim";

/// Where it cannot, this machine's own release is, got the way this machine gets
/// it. Of apt's settings only how to fetch: hooks call programs that live here.
const DEBOOTSTRAP: &str = r#"
set -eu
temporary=$(mktemp --directory)
trap 'rm -r --one-file-system "$temporary"' EXIT
root=$temporary/root
. /etc/os-release
apt-get --print-uris update >"$temporary/uris"
mirror=$(sed -n "s,^'\(.*\)/dists/$VERSION_CODENAME/.*,\1,p" "$temporary/uris" | head -n 1)
debootstrap --variant=minbase "$VERSION_CODENAME" "$root" "$mirror"
for source in /etc/apt/sources.list /etc/apt/sources.list.d /etc/apt/keyrings /usr/share/keyrings; do
    if [ -e "$source" ]; then cp --recursive --parents "$source" "$root"; fi
done
apt-config dump | grep '^Acquire::' | grep -v IndexTargets >"$root/etc/apt/apt.conf.d/99machine"
set -- --change 'LABEL cutover-test='
if [ "${SSL_CERT_FILE-}" ]; then
    cp "$SSL_CERT_FILE" "$root/etc/machine-ca.crt"
    echo 'Acquire::https::CAInfo "/etc/machine-ca.crt";' >>"$root/etc/apt/apt.conf.d/99machine"
    set -- "$@" --change 'ENV CARGO_HTTP_CAINFO=/etc/machine-ca.crt'
fi
for proxy in http_proxy https_proxy no_proxy; do
    if address=$(printenv "$proxy"); then set -- "$@" --change "ENV $proxy=$address"; fi
done
tar --create --file "$temporary/tar" --directory "$root" .
docker import "$@" "$temporary/tar" "$tag"
"#;

/// A bare Debian with sshd, as rented: root and `admin` (sudo) log in by key, and
/// it makes its host key when it first boots. Where CAP_AUDIT_CONTROL is missing,
/// a required pam_loginuid can end every login.
const SERVER: &str = r#"
STOPSIGNAL SIGRTMIN+3
CMD ["sh", "-c", "key=/etc/ssh/ssh_host_ed25519_key; [ -e $key ] || ssh-keygen -q -t ed25519 -N '' -f $key; exec /sbin/init"]
ARG DEBIAN_FRONTEND=noninteractive
RUN apt-get --option Acquire::Retries=3 update \
    && apt-get --option Acquire::Retries=3 install --yes --no-install-recommends \
        dbus iproute2 libpam-systemd openssh-server rsync sudo systemd systemd-sysv zstd \
    && apt-get clean && rm -r /var/lib/apt/lists /etc/ssh/ssh_host_* \
    && systemctl mask systemd-udevd.service systemd-udev-trigger.service getty.target console-getty.service \
    && sed --in-place 's/required *pam_loginuid/optional pam_loginuid/' /etc/pam.d/sshd \
    && useradd --create-home --shell /bin/bash admin \
    && echo 'admin ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/admin \
    && install --directory --mode=700 /root/.ssh \
    && install --directory --mode=700 --owner=admin --group=admin /home/admin/.ssh
"#;

/// A stand-in for `rust-musl-cross:x86_64-musl` out of Debian's packages. They
/// have no std for musl, so it is built here, with bitcode for LTO. gcc's unwinder
/// asks glibc for a function that musl lacks, and for three that a static link
/// would leave out: `glue.o` has them, or every panic would abort.
const BUILDER: &str = r#"
ENV CARGO_HOME=/root/.cargo CARGO_BUILD_TARGET=x86_64-unknown-linux-musl
WORKDIR /home/rust/src
ARG DEBIAN_FRONTEND=noninteractive
RUN apt-get --option Acquire::Retries=3 update \
    && apt-get --option Acquire::Retries=3 install --yes --no-install-recommends \
        ca-certificates cargo-web gcc libc6-dev musl-tools rust-web-src rustc-web \
    && apt-get clean && rm -r /var/lib/apt/lists \
    && mkdir -p "$CARGO_HOME" /usr/local/lib/musl-unwind && cd /usr/local/lib/musl-unwind \
    && echo ' \
        struct object { unsigned long long flags; void *start, *end, *map, *frames; unsigned long long more[7]; }; \
        static int visit(struct dl_phdr_info *program, size_t size, void *object) { \
            for (int i = 0; i < program->dlpi_phnum; i++) \
                if (program->dlpi_phdr[i].p_type == PT_GNU_EH_FRAME) \
                    ((struct object *)object)->frames = (void *)(program->dlpi_addr + program->dlpi_phdr[i].p_vaddr); \
            return 1; \
        } \
        int _dl_find_object(void *pc, struct object *object) { return dl_iterate_phdr(visit, object) - 1; } \
        void *const linked[] = { pthread_once, pthread_mutex_lock, pthread_mutex_unlock }; \
    ' | musl-gcc -D_GNU_SOURCE -include link.h -include pthread.h -O2 -x c -c - -o glue.o \
    && cp "$(gcc -print-file-name=libgcc_eh.a)" libunwind.a && ar r libunwind.a glue.o \
    && printf '%s\n' "[target.$CARGO_BUILD_TARGET]" 'linker = "musl-gcc"' \
        'rustflags = ["-Clink-self-contained=no", "-Crelocation-model=static", "-L/usr/local/lib/musl-unwind"]' \
        >"$CARGO_HOME/config.toml" \
    && cargo new --vcs none /tmp/sysroot && cd /tmp/sysroot \
    && RUSTC_BOOTSTRAP=1 cargo build --release -Zbuild-std=std,panic_abort \
        --config "target.$CARGO_BUILD_TARGET.rustflags=['-Cembed-bitcode=yes']" \
    && install -D --mode=644 --target-directory="/usr/lib/rustlib/$CARGO_BUILD_TARGET/lib" \
        "target/$CARGO_BUILD_TARGET"/release/deps/*.rlib \
    && apt-get purge --yes rust-web-src && rm -r /tmp/sysroot "$CARGO_HOME/registry"
"#;

/// What systemd needs to be PID 1. `--privileged` would give more, and fails
/// on machines that lack a capability themselves.
const SYSTEMD_FLAGS: &str = "--cap-add=SYS_ADMIN --cap-add=NET_ADMIN \
    --security-opt=seccomp=unconfined --security-opt=apparmor=unconfined \
    --cgroupns=host --volume=/sys/fs/cgroup:/sys/fs/cgroup:rw \
    --tmpfs=/run --tmpfs=/run/lock --tmpfs=/tmp";

/// Longer than a boot takes when eight do it at a time. Some twenty at a time
/// never get there: then fs.inotify.max_user_instances has run out.
const BOOT_TIMEOUT: Duration = Duration::from_secs(60);

/// Says why there can be no laboratory here, before a test fails for it.
pub fn docker_available() -> Result<()> {
    docker("version", &[])
        .map(drop)
        .context("the laboratory needs Docker, and a user who may use it")
}

/// A minimal Debian to build on, made here where none can be pulled.
pub fn base_image() -> Result<String> {
    docker_available()?;
    // A kept image with yesterday's certificates would only fail later.
    let certificates = env::var_os("SSL_CERT_FILE").map(fs::read).transpose()?;
    let recipe = (DEBIAN, DEBOOTSTRAP, certificates);
    image("debian", recipe, |sh, tag| {
        match docker("pull", &[DEBIAN]) {
            Ok(_) => docker("tag", &[DEBIAN, tag]),
            Err(no_pull) => debootstrap(sh, tag).with_context(|| format!("{no_pull:#}")),
        }
    })
}

fn debootstrap(sh: &Shell, tag: &str) -> Result<String> {
    let installed = run(cmd!(sh, "debootstrap --version")).is_ok();
    ensure!(
        installed,
        "`debootstrap` is missing\nhint: `apt-get install debootstrap`"
    );
    run(cmd!(sh, "sh -c {DEBOOTSTRAP}").env("tag", tag))
}

/// What a `Server` is started from.
pub fn server_image() -> Result<String> {
    image_from("server", &base_image()?, SERVER)
}

/// Takes the place of the builder that people pull: same folders, same behaviour.
pub fn builder_image() -> Result<String> {
    image_from("musl-builder", &base_image()?, BUILDER)
}

/// Another image with these steps on top.
pub fn image_from(name: &str, base: &str, steps: &str) -> Result<String> {
    let dockerfile = format!("FROM {base}\n{steps}");
    image(name, &dockerfile, |sh, tag| {
        let label = "--label=cutover-test";
        let build = cmd!(sh, "docker build --quiet {label} --tag {tag} -");
        run(build.stdin(&dockerfile))
    })
}

/// An image is kept, and found again by what it was made from. Only one is made
/// at a time: whoever else wants it, in whatever process, then finds it there.
fn image(
    name: &str,
    recipe: impl Hash,
    make: impl FnOnce(&Shell, &str) -> Result<String>,
) -> Result<String> {
    let mut hasher = DefaultHasher::new();
    recipe.hash(&mut hasher);
    let tag = format!("cutover-test/{name}:{:016x}", hasher.finish());
    let lock = File::create(env::temp_dir().join("cutover-test.lock"))?;
    lock.lock()?;
    if docker("image inspect", &[&tag]).is_err() {
        make(&Shell::new()?, &tag).with_context(|| format!("cannot make the image `{tag}`"))?;
    }
    Ok(tag)
}

/// One network and one key for all servers that a test process has at a time.
struct Lab {
    subnet: [u8; 3],
    network: String,
    servers: AtomicU8,
    keys: TempDir,
}

static LAB: Mutex<Weak<Lab>> = Mutex::new(Weak::new());

impl Lab {
    fn join() -> Result<Arc<Lab>> {
        let mut current = LAB.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(lab) = current.upgrade() {
            return Ok(lab);
        }
        let lab = Arc::new(Lab::open()?);
        *current = Arc::downgrade(&lab);
        Ok(lab)
    }

    fn open() -> Result<Lab> {
        let sh = Shell::new()?;
        let keys = sh.create_temp_dir()?;
        let key = keys.path().join("id");
        run(cmd!(sh, "ssh-keygen -q -t ed25519 -N '' -f {key}"))?;
        let (subnet, network) = make_network()?;
        let servers = AtomicU8::new(2); // 1 is this machine
        Ok(Lab {
            subnet,
            network,
            servers,
            keys,
        })
    }
}

/// Docker keeps an address over a power cut only where the subnet was named, so
/// it is one of 198.18.0.0/15, which is set aside for laboratories. It has no way out:
/// what a server needs must come from whoever deploys.
fn make_network() -> Result<([u8; 3], String)> {
    for wish in (process::id()..).take(512) {
        let subnet @ [a, b, c] = [198, 18 + (wish / 256 % 2) as u8, wish as u8];
        let network = format!("cutover-test-{}-{b}-{c}", process::id());
        let create = "network create --label=cutover-test --internal --subnet";
        match docker(create, &[&format!("{a}.{b}.{c}.0/24"), &network]) {
            Ok(_) => return Ok((subnet, network)),
            Err(error) if error.to_string().contains("overlaps") => continue,
            Err(error) if error.to_string().contains("already exists") => continue,
            Err(error) => return Err(error),
        }
    }
    bail!("every subnet of 198.18.0.0/15 is taken")
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = docker("network rm", &[&self.network]);
    }
}

/// A machine that can be logged in to, and can lose its power or its line.
pub struct Server {
    name: String,
    container: String,
    ip: Ipv4Addr,
    lab: Arc<Lab>,
}

impl Server {
    /// Has booted, and lets people in, when this returns. The arguments are Docker's, such
    /// as a disk small enough to fill: `--tmpfs=/srv:size=20m,exec`.
    pub fn start_with(name: &str, docker_args: &[&str]) -> Result<Server> {
        Server::start_from(&server_image()?, name, docker_args)
    }

    /// From an image made of the servers' one.
    pub fn start_from(image: &str, name: &str, docker_args: &[&str]) -> Result<Server> {
        let lab = Lab::join()?;
        let number = lab.servers.fetch_add(1, Relaxed);
        let container = format!("{}-{number}-{name}", lab.network);
        let [a, b, c] = lab.subnet;
        let ip = Ipv4Addr::new(a, b, c, number);
        let name = name.to_owned();
        let server = Server {
            name,
            container,
            ip,
            lab,
        };
        server.create(image, docker_args)?;
        server.boot()?;
        server.exchange_keys()?;
        Ok(server)
    }

    fn create(&self, image: &str, docker_args: &[&str]) -> Result<()> {
        let names = ["--name", &self.container, "--hostname", &self.name];
        let network = ["--network", &self.lab.network, "--ip", &self.ip.to_string()];
        let flags: Vec<_> = SYSTEMD_FLAGS.split(' ').collect();
        let args = [&names, &network, &flags[..], docker_args, &[image]].concat();
        docker("create --label=cutover-test", &args).map(drop)
    }

    /// Not over ssh, so that no host key is ever taken on trust.
    fn exchange_keys(&self) -> Result<()> {
        let keys = self.lab.keys.path();
        let ours = fs::read_to_string(keys.join("id.pub"))?;
        let exchange =
            "echo \"$0\" | tee /root/.ssh/authorized_keys >/home/admin/.ssh/authorized_keys
            cat /etc/ssh/ssh_host_ed25519_key.pub";
        let theirs = docker("exec", &[&self.container, "sh", "-c", exchange, &ours])?;
        let known_hosts = keys.join(&self.container);
        fs::write(known_hosts, format!("{} {theirs}", self.container))?;
        Ok(())
    }

    pub fn ip(&self) -> Ipv4Addr {
        self.ip
    }

    /// Adds the server under its name to a file for `ssh -F`, with its host key:
    /// a test that skipped host keys would not notice a tool that does.
    pub fn ssh_config(&self, file: &Path) -> Result<()> {
        self.ssh_config_via(SocketAddr::from((self.ip, 22)), file)
    }

    /// The same by a detour, with a proxy in between.
    pub fn ssh_config_via(&self, address: SocketAddr, file: &Path) -> Result<()> {
        let keys = self.lab.keys.path().display();
        let entry = [
            format!("Host {}", self.name),
            format!("HostName {}", address.ip()),
            format!("Port {}", address.port()),
            format!("HostKeyAlias {}", self.container),
            format!("UserKnownHostsFile \"{keys}/{}\"", self.container),
            format!("IdentityFile \"{keys}/id\""),
            "IdentitiesOnly yes\nIdentityAgent none".to_owned(),
            "StrictHostKeyChecking yes\nBatchMode yes\nUser root\n".to_owned(),
        ];
        let mut file = OpenOptions::new().create(true).append(true).open(file)?;
        Ok(file.write_all(entry.join("\n").as_bytes())?)
    }

    /// As root and behind ssh's back: for looking, and for breaking things.
    pub fn exec(&self, command: &[&str]) -> Result<Output> {
        let (sh, container) = (Shell::new()?, &self.container);
        let exec = cmd!(sh, "docker exec {container} {command...}");
        Ok(exec.quiet().ignore_status().output()?)
    }

    /// Power loss: nobody gets to say goodbye, and what was in a tmpfs is gone.
    /// Only the disk is kinder than a real one: it has what was never flushed.
    pub fn kill(&self) -> Result<()> {
        docker("kill", &[&self.container]).map(drop)
    }

    /// Power is back: same disk, same address, same host key.
    pub fn boot(&self) -> Result<()> {
        docker("start", &[&self.container])?;
        let deadline = Instant::now() + BOOT_TIMEOUT;
        while !(self.has_booted()? && TcpStream::connect((self.ip, 22)).is_ok()) {
            if Instant::now() > deadline {
                let journal = self.exec(&["journalctl", "--priority=warning", "--lines=9"])?;
                let journal = String::from_utf8_lossy(&journal.stdout).into_owned();
                bail!("`{}` does not boot\n{journal}", self.name);
            }
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn has_booted(&self) -> Result<bool> {
        let wait = ["timeout", "5", "systemctl", "is-system-running", "--wait"];
        let state = self.exec(&wait)?.stdout;
        Ok(matches!(state.trim_ascii(), b"running" | b"degraded"))
    }

    /// The line is cut: both ends wait for packets that do not come.
    pub fn disconnect(&self) -> Result<()> {
        docker("network disconnect", &[&self.lab.network, &self.container]).map(drop)
    }

    /// The line is back, and connections that were waiting go on.
    pub fn connect(&self) -> Result<()> {
        let args = [&self.ip.to_string(), &self.lab.network, &self.container];
        docker("network connect --ip", &args.map(|it| it.as_str())).map(drop)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = docker("rm --force --volumes", &[&self.container]);
    }
}

/// The command's words, and after them what is passed as it is.
fn docker(words: &str, args: &[&str]) -> Result<String> {
    let sh = Shell::new()?;
    run(sh.cmd("docker").args(words.split(' ')).args(args))
}

/// What a command says on stdout, or, where it fails, everything it said.
fn run(command: Cmd) -> Result<String> {
    let described = command.to_string();
    let output = command.quiet().ignore_status().output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("`{described}`: {}\n{said}{complaint}", output.status);
    }
    Ok(said.into_owned())
}
