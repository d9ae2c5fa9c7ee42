//! The laboratory: real servers (PID 1 is systemd or sysvinit, sshd, a disk that survives
//! a power cut) and a real musl builder, each a Docker container.
//!
//! All containers, networks, images and volumes carry the label `cutover-test`. To find what
//! a killed test run left behind: `docker ps -a --filter label=cutover-test`. `docker rm
//! --force --volumes` removes a container with its disk.

use std::{
    collections::{BTreeMap, hash_map::DefaultHasher},
    env,
    fs::{self, File, OpenOptions},
    hash::{Hash, Hasher},
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{self, Child, ChildStdin, ChildStdout, Command, ExitStatus, Output, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use xshell::{Cmd, Shell, TempDir, cmd};

/// The release of Debian that tests use where they name no other one.
const RELEASE: &str = "bookworm";

/// Makes a minimal Debian of any release, fetched the way this machine fetches its own.
/// Only apt's settings for fetching are copied: its hooks call programs of this machine.
const DEBOOTSTRAP: &str = r#"
set -eu
temporary=$(mktemp --directory)
trap 'rm -r --one-file-system "$temporary"' EXIT
root=$temporary/root
. /etc/os-release
archive=http://deb.debian.org/debian
security=http://deb.debian.org/debian-security
if [ "$ID" = debian ]; then
    apt-get --print-uris update >"$temporary/uris"
    mirror_of() { sed -n "s,^'\(.*\)/dists/$1/.*,\1,p" "$temporary/uris" | head -n 1; }
    archive=$(mirror_of "$VERSION_CODENAME")
    security=$(mirror_of "$VERSION_CODENAME-security")
fi
debootstrap --variant=minbase "$release" "$root" "$archive"
echo "deb $archive $release main" >"$root/etc/apt/sources.list"
if [ "$security" ]; then
    echo "deb $security $release-security main" >>"$root/etc/apt/sources.list"
fi
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

/// A bare Debian with sshd, as rented: root and `admin` (sudo) log in by key. `pam_loginuid`
/// is not required, because it ends every login where CAP_AUDIT_CONTROL is missing.
const SERVER: &str = r#"
STOPSIGNAL SIGRTMIN+3
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

/// Turns a server into one without systemd: sysvinit is PID 1 and starts sshd and cron.
const SYSVINIT: &str = r#"
RUN apt-get --option Acquire::Retries=3 update \
    && apt-get --option Acquire::Retries=3 install --yes --no-install-recommends cron sysvinit-core \
    && apt-get purge --yes --autoremove dbus libpam-systemd systemd \
    && apt-get clean && rm -r /var/lib/apt/lists \
    && sed --in-place '/getty/d' /etc/inittab
"#;

/// Replaces `rust-musl-cross:$arch-musl`, made of Debian's packages. They have no std
/// for musl, so std is built here, with bitcode for LTO. gcc's unwinder needs a function
/// of glibc that musl lacks, and three that a static link would leave out: `glue.o` has
/// them, because without them every panic aborts.
const BUILDER: &str = r#"
ENV CARGO_HOME=/root/.cargo CARGO_BUILD_TARGET=$arch-unknown-linux-musl
WORKDIR /home/rust/src
ARG DEBIAN_FRONTEND=noninteractive
RUN dpkg --add-architecture "$debian" && apt-get --option Acquire::Retries=3 update \
    && apt-get --option Acquire::Retries=3 install --yes --no-install-recommends \
        ca-certificates cargo-web gcc libc6-dev "musl-dev:$debian" rust-web-src rustc-web \
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
    ' | "$arch-linux-musl-gcc" -D_GNU_SOURCE -include link.h -include pthread.h -O2 -x c -c - -o glue.o \
    && cp "$("$arch-linux-gnu-gcc" -print-file-name=libgcc_eh.a)" libunwind.a && ar r libunwind.a glue.o \
    && printf '%s\n' "[target.$CARGO_BUILD_TARGET]" "linker = '$arch-linux-musl-gcc'" \
        'rustflags = ["-Clink-self-contained=no", "-Crelocation-model=static", "-L/usr/local/lib/musl-unwind"]' \
        >"$CARGO_HOME/config.toml" \
    && cargo new --vcs none /tmp/sysroot && cd /tmp/sysroot \
    && RUSTC_BOOTSTRAP=1 cargo build --release -Zbuild-std=std,panic_abort \
        --config "target.$CARGO_BUILD_TARGET.rustflags=['-Cembed-bitcode=yes']" \
    && install -D --mode=644 --target-directory="/usr/lib/rustlib/$CARGO_BUILD_TARGET/lib" \
        "target/$CARGO_BUILD_TARGET"/release/deps/*.rlib \
    && apt-get purge --yes rust-web-src && rm -r /tmp/sysroot "$CARGO_HOME/registry"
"#;

/// The one program of Debian's package; all of it would be 300 MB.
const QEMU: &str = r#"
RUN apt-get --option Acquire::Retries=3 update && cd /tmp \
    && apt-get --option Acquire::Retries=3 download qemu-user-static \
    && dpkg-deb --fsys-tarfile qemu-user-static_*.deb \
        | tar --extract --directory / ./usr/bin/qemu-aarch64-static \
    && rm qemu-user-static_*.deb && rm -r /var/lib/apt/lists
"#;

/// The kernel knows a program for arm64 by the head of its file. F: the kernel keeps qemu
/// open, so containers need not have it. P: qemu passes argv[0] on. C: sudo becomes root.
const EMULATE: &str = r#"
mount -t binfmt_misc none /mnt
cp --remove-destination /usr/bin/qemu-aarch64-static "$dir/qemu-aarch64"
head='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
printf %s ":$name:M::$head:$mask:$dir/qemu-aarch64:CFP" >/mnt/register
"#;

/// The first boot makes the host key.
const BOOT: &str = "
key=/etc/ssh/ssh_host_ed25519_key
[ -e $key ] || ssh-keygen -q -t ed25519 -N '' -f $key
exec /sbin/init
";

/// In fuse-overlayfs another process answers each `open` and each link, which takes long. So
/// before it boots, a server moves to an overlay of the kernel: below is a copy of its image,
/// above is a disk of its own. If the kernel refuses, the server stays where it is.
const MOVE: &str = r#"
mounts=$(cat /proc/self/mountinfo)
mkdir -p /disk/upper /disk/work /new
layers=lowerdir=/copy/image,upperdir=/disk/upper,workdir=/disk/work
if mount -t overlay overlay -o "$layers" /new; then
    echo "$mounts" | while read -r id parent _ _ at _; do
        case $at in
            /) root=$id ;;
            /copy | /disk) ;;
            *) [ "$parent" != "$root" ] || mount --rbind "$at" "/new$at" ;;
        esac
    done
    cd /new
    pivot_root . mnt
    umount -l /mnt
fi
"#;

/// Copies an image to a volume. /dev, /proc and /sys stay empty, because the kernel changes them
/// while tar reads.
const COPY: &str = "
cd /
[ ! -e /copy/whole ] || exit 0
mkdir -p /copy/image/{dev,proc,sys}
tar --create --one-file-system --exclude=./{copy,dev,proc,sys} \\
    --xattrs --xattrs-include='security.*' . |
    tar --extract --xattrs --xattrs-include='security.*' --directory /copy/image
touch /copy/whole
";

const DISK: &str = "--mount=type=volume,destination=/disk,volume-label=cutover-test";

/// What systemd needs to be PID 1. `--privileged` fails on machines that lack a capability.
const SYSTEMD_FLAGS: &str = "--cap-add=SYS_ADMIN --cap-add=NET_ADMIN \
    --security-opt=seccomp=unconfined --security-opt=apparmor=unconfined \
    --cgroupns=host --volume=/sys/fs/cgroup:/sys/fs/cgroup:rw \
    --tmpfs=/run --tmpfs=/run/lock --tmpfs=/tmp";

/// Longer than a boot takes when eight servers boot at a time.
const BOOT_TIMEOUT: Duration = Duration::from_secs(60);

/// A server takes 7 instances, and 3 more while somebody is logged in. They all count for
/// root, who has 128 by default: enough for a dozen servers, and tests have ten at a time.
const INOTIFY_HINT: &str =
    "if many servers run: `sysctl fs.inotify.max_user_instances` has to be 10 for each";

/// Asks whichever init is PID 1; sysvinit says `N 2` once it has entered runlevel 2.
const BOOT_STATE: &str = "if [ -d /run/systemd/system ]
    then timeout 5 systemctl is-system-running --wait
    else runlevel; fi";

/// Says why servers cannot be started, before a test fails for that reason.
pub fn docker_available() -> Result<()> {
    docker("version", &[])
        .map(drop)
        .context("the tests need Docker, and a user who may use it")
}

/// A minimal Debian to build on: pulled, or made here where it cannot be pulled.
pub fn base_image() -> Result<String> {
    base_image_of(RELEASE)
}

fn base_image_of(release: &str) -> Result<String> {
    docker_available()?;
    let recipe = (release, DEBOOTSTRAP, certificates()?);
    image(&format!("debian-{release}"), recipe, |_, tag| {
        let official = format!("debian:{release}-slim");
        match docker("pull", &[&official]) {
            Ok(_) => docker("tag", &[&official, tag]),
            Err(no_pull) => {
                debootstrap(tag, release, DEBOOTSTRAP).with_context(|| format!("{no_pull:#}"))
            }
        }
    })
}

/// An image with yesterday's certificates would only fail later.
fn certificates() -> Result<Option<Vec<u8>>> {
    Ok(env::var_os("SSL_CERT_FILE").map(fs::read).transpose()?)
}

fn debootstrap(tag: &str, release: &str, script: &str) -> Result<String> {
    let sh = Shell::new()?;
    run(cmd!(sh, "sh -c {script}").envs([("tag", tag), ("release", release)]))
}

/// What `Server::start_with` starts.
pub fn server_image() -> Result<String> {
    server_image_of(RELEASE)
}

/// A server of another release of Debian: `bullseye`, `bookworm` or `trixie`.
pub fn server_image_of(release: &str) -> Result<String> {
    image_from(
        &format!("server-{release}"),
        &base_image_of(release)?,
        SERVER,
    )
}

/// A server without systemd.
pub fn sysvinit_image() -> Result<String> {
    image_from("server-sysvinit", &server_image()?, SYSVINIT)
}

/// As long as it lives, this machine runs programs for arm64, by qemu. Its container holds
/// the kernel's list of emulators mounted: without any mount, the list is forgotten.
pub struct Arm64Emulator {
    container: String,
}

impl Arm64Emulator {
    pub fn start() -> Result<Arm64Emulator> {
        let image = image_from("qemu", &base_image()?, QEMU)?;
        let container = format!("cutover-test-{}-qemu", process::id());
        let dir = env!("CARGO_TARGET_TMPDIR");
        let rights = "--cap-add=SYS_ADMIN --security-opt=apparmor=unconfined";
        docker(
            &format!("run --detach --label=cutover-test {rights} --name"),
            &[
                &container,
                &format!("--volume={dir}:{dir}"),
                &image,
                "sleep",
                "infinity",
            ],
        )?;
        let emulator = Arm64Emulator { container };
        emulator.run(EMULATE)?;
        Ok(emulator)
    }

    /// The same server for arm64: all its programs are, from systemd to sh.
    pub fn server_image(&self) -> Result<String> {
        let script = DEBOOTSTRAP.replace("\ndebootstrap ", "\ndebootstrap --arch=arm64 ");
        let recipe = (RELEASE, &script, certificates()?);
        let base = image("debian-arm64", recipe, |_, tag| {
            debootstrap(tag, RELEASE, &script)
        })?;
        image_from("server-arm64", &base, SERVER)
    }

    fn run(&self, script: &str) -> Result<String> {
        let (name, dir) = (&self.container, env!("CARGO_TARGET_TMPDIR"));
        docker(
            "exec",
            &[
                name,
                "sh",
                "-euc",
                &format!("name={name} dir='{dir}'\n{script}"),
            ],
        )
    }
}

impl Drop for Arm64Emulator {
    fn drop(&mut self) {
        let _ = self.run("echo -1 >\"/mnt/$name\"");
        let _ = docker("rm --force", &[&self.container]);
    }
}

/// Replaces the builders that people pull: same folders, same behaviour. As theirs, the
/// image's name has `{arch}` in the place of the architecture.
pub fn builder_image(arch: &str) -> Result<String> {
    let debian = match arch {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => bail!("no builder for {other}"),
    };
    let steps = format!("ARG arch={arch}\nARG debian={debian}\n{BUILDER}");
    image_from(&format!("musl-builder-{arch}"), &base_image()?, &steps)
}

/// The image `base` with more steps of a Dockerfile.
pub fn image_from(name: &str, base: &str, steps: &str) -> Result<String> {
    let dockerfile = format!("FROM {base}\n{steps}");
    image(name, &dockerfile, |sh, tag| {
        let label = "--label=cutover-test";
        let build = cmd!(sh, "docker build --quiet {label} --tag {tag} -");
        run(build.stdin(&dockerfile))
    })
}

/// Images are kept, and found again by the hash of their recipe. A lock lets one process
/// make an image while the others that need it wait.
fn image(
    name: &str,
    recipe: impl Hash,
    make: impl FnOnce(&Shell, &str) -> Result<String>,
) -> Result<String> {
    let mut hasher = DefaultHasher::new();
    recipe.hash(&mut hasher);
    let tag = format!("cutover-test/{name}:{:016x}", hasher.finish());
    let lock = File::create(env::temp_dir().join(format!("cutover-test-{name}.lock")))?;
    lock.lock()?;
    if docker("image inspect", &[&tag]).is_err() {
        make(&Shell::new()?, &tag).with_context(|| format!("cannot make the image `{tag}`"))?;
    }
    Ok(tag)
}

/// A volume with a copy of the image, for `MOVE`. `None` if Docker's storage is not
/// fuse-overlayfs. The copy is kept, and found again by the image's own hash.
fn copy_of(image: &str) -> Result<Option<String>> {
    static DRIVER: OnceLock<String> = OnceLock::new();
    static COPIED: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());
    let driver = || docker("info --format", &["{{.Driver}}"]).unwrap_or_default();
    if DRIVER.get_or_init(driver).trim() != "fuse-overlayfs" {
        return Ok(None);
    }
    let mut copied = COPIED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(volume) = copied.get(image) {
        return Ok(Some(volume.clone()));
    }
    let lock = File::create(env::temp_dir().join("cutover-test-volume.lock"))?;
    lock.lock()?;
    let id = docker("image inspect --format", &["{{.Id}}", image])?;
    let volume = format!("cutover-test-{}", id.trim().trim_start_matches("sha256:"));
    docker("volume create --label=cutover-test", &[&volume])?;
    let mount = format!("--volume={volume}:/copy");
    let copy = ["bash", "-euo", "pipefail", "-c", COPY];
    docker(
        "run --rm --label=cutover-test",
        &[&[&*mount, image], &copy[..]].concat(),
    )?;
    copied.insert(image.to_owned(), volume.clone());
    Ok(Some(volume))
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

/// Docker keeps a container's address over a power cut only in a subnet that was named.
/// 198.18.0.0/15 is reserved for such laboratories. The network has no way out, so that
/// all that a server gets comes from the deploying side.
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

/// A machine that one can log in to, and that can lose its power or its connection.
pub struct Server {
    name: String,
    container: String,
    ip: Ipv4Addr,
    lab: Arc<Lab>,
    /// Those that run no command now.
    shells: Mutex<Vec<RootShell>>,
}

impl Server {
    /// Returns when the server has booted and lets people in. `docker_args` can give it, for
    /// example, a disk that is small enough to fill: `--tmpfs=/srv:size=20m,exec`.
    pub fn start_with(name: &str, docker_args: &[&str]) -> Result<Server> {
        Server::start_from(&server_image()?, name, docker_args)
    }

    /// The same from `server_image_of`, `sysvinit_image` or an image made from one of them.
    pub fn start_from(image: &str, name: &str, docker_args: &[&str]) -> Result<Server> {
        Server::start_in(Lab::join()?, image, name, docker_args)
    }

    /// In a network of their own, with the addresses 2 and 3.
    pub fn start_two(image: &str, names: [&str; 2], docker_args: &[&str]) -> Result<[Server; 2]> {
        let lab = Arc::new(Lab::open()?);
        let start = |name| Server::start_in(Arc::clone(&lab), image, name, docker_args);
        Ok([start(names[0])?, start(names[1])?])
    }

    /// A machine beside the servers that has neither init nor sshd: it runs the command of
    /// its image.
    pub fn start_plain(image: &str, name: &str, docker_args: &[&str]) -> Result<Server> {
        let server = Server::new(Lab::join()?, name)?;
        server.create(image, docker_args, &[])?;
        docker("start", &[&server.container])?;
        Ok(server)
    }

    fn start_in(lab: Arc<Lab>, image: &str, name: &str, docker_args: &[&str]) -> Result<Server> {
        let server = Server::new(lab, name)?;
        let mut args: Vec<_> = SYSTEMD_FLAGS.split(' ').collect();
        let mut boot = BOOT.to_owned();
        let copy = copy_of(image)?.map(|it| format!("--volume={it}:/copy:ro"));
        if let Some(copy) = &copy {
            args.extend([copy, DISK]);
            boot = format!("{MOVE}{BOOT}");
        }
        args.extend(docker_args);
        server.create(image, &args, &["sh", "-euc", &boot])?;
        server.boot()?;
        server.exchange_keys()?;
        Ok(server)
    }

    fn new(lab: Arc<Lab>, name: &str) -> Result<Server> {
        let number = lab.servers.fetch_add(1, Relaxed);
        let container = format!("{}-{number}-{name}", lab.network);
        let [a, b, c] = lab.subnet;
        let ip = Ipv4Addr::new(a, b, c, number);
        let name = name.to_owned();
        Ok(Server {
            name,
            container,
            ip,
            lab,
            shells: Mutex::default(),
        })
    }

    fn create(&self, image: &str, docker_args: &[&str], command: &[&str]) -> Result<()> {
        let names = ["--name", &self.container, "--hostname", &self.name];
        let network = ["--network", &self.lab.network, "--ip", &self.ip.to_string()];
        let args = [&names, &network, docker_args, &[image], command].concat();
        docker("create --label=cutover-test", &args).map(drop)
    }

    /// Bypasses ssh, so that no host key is ever taken on trust.
    fn exchange_keys(&self) -> Result<()> {
        let keys = self.lab.keys.path();
        let ours = fs::read_to_string(keys.join("id.pub"))?;
        let exchange =
            "echo \"$0\" | tee /root/.ssh/authorized_keys >/home/admin/.ssh/authorized_keys
            cat /etc/ssh/ssh_host_ed25519_key.pub";
        let theirs = self.exec(&["sh", "-c", exchange, &ours])?;
        ensure!(theirs.status.success(), "no keys: {theirs:?}");
        let entry = [self.container.as_bytes(), b" ", &theirs.stdout].concat();
        fs::write(keys.join(&self.container), entry)?;
        Ok(())
    }

    pub fn network(&self) -> &str {
        &self.lab.network
    }

    pub fn ip(&self) -> Ipv4Addr {
        self.ip
    }

    /// Adds the server under its name to a file for `ssh -F`, with its host key: if tests
    /// did not check host keys, nobody would notice that a tool does not.
    pub fn ssh_config(&self, file: &Path) -> Result<()> {
        self.ssh_config_via(SocketAddr::from((self.ip, 22)), file)
    }

    /// The same through a proxy that listens on `address`.
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

    pub fn container(&self) -> &str {
        &self.container
    }

    /// Runs a command as root, without ssh: to look, and to break things.
    pub fn exec(&self, command: &[&str]) -> Result<Output> {
        let idle = self.shells().pop();
        let mut shell = idle.map_or_else(|| RootShell::start(&self.container), Ok)?;
        let output = shell.run(command);
        if output.is_ok() {
            self.shells().push(shell);
        }
        output.with_context(|| format!("`{}` was cut off on {}", command.join(" "), self.name))
    }

    fn shells(&self) -> MutexGuard<'_, Vec<RootShell>> {
        self.shells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Power loss: every process is killed, and every tmpfs is empty afterwards. Unlike on a
    /// real disk, what was never flushed is still there.
    pub fn kill(&self) -> Result<()> {
        docker("kill", &[&self.container])?;
        self.shells().clear();
        Ok(())
    }

    /// The power is back: same disk, same address, same host key.
    pub fn boot(&self) -> Result<()> {
        docker("start", &[&self.container])?;
        let deadline = Instant::now() + BOOT_TIMEOUT;
        while !(self.has_booted().unwrap_or(false) && TcpStream::connect((self.ip, 22)).is_ok()) {
            if Instant::now() > deadline {
                let journal = self.exec(&["journalctl", "--priority=warning", "--lines=9"])?;
                let journal = String::from_utf8_lossy(&journal.stdout).into_owned();
                bail!("`{}` does not boot; {INOTIFY_HINT}\n{journal}", self.name);
            }
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn has_booted(&self) -> Result<bool> {
        let state = self.exec(&["sh", "-c", BOOT_STATE])?.stdout;
        Ok(matches!(
            state.trim_ascii(),
            b"running" | b"degraded" | b"N 2"
        ))
    }

    /// Cuts the network: both ends wait for packets that do not come.
    pub fn disconnect(&self) -> Result<()> {
        docker("network disconnect", &[&self.lab.network, &self.container]).map(drop)
    }

    /// The network is back, and connections that were waiting go on.
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

/// A shell on a server that runs one command after the other. A `docker exec` for each would
/// cost a tenth of a second of a processor, and a test that waits asks often.
struct RootShell {
    docker: Child,
    commands: ChildStdin,
    results: BufReader<ChildStdout>,
}

/// Prints what a command said and its status. What it has left in the background may go on to
/// write, so each command has files of its own. They are removed rarely, because `rm` takes
/// milliseconds, and a test that waits asks often.
const RUN: &str = r#"count=0
run() {
    [ $((count % 100)) -ne 99 ] || rm -f "/run/lab-$$-"*
    status=0 count=$((count + 1))
    "$@" </dev/null >"/run/lab-$$-$count.out" 2>"/run/lab-$$-$count.err" || status=$?
    [ ! -s "/run/lab-$$-$count.out" ] || cat "/run/lab-$$-$count.out"
    printf '\n%s\n' "$end"
    [ ! -s "/run/lab-$$-$count.err" ] || cat "/run/lab-$$-$count.err"
    printf '\n%s\n%s\n' "$end" "$status"
}"#;

/// Stands after each output. No command prints it.
const END: &str = "---- the end of what a command of the lab has printed ----";

impl RootShell {
    fn start(container: &str) -> Result<RootShell> {
        let mut docker = Command::new("docker")
            .args(["exec", "--interactive", container, "sh"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut commands = docker.stdin.take().context("no input")?;
        writeln!(commands, "end='{END}'\n{RUN}")?;
        let results = BufReader::new(docker.stdout.take().context("no output")?);
        Ok(RootShell {
            docker,
            commands,
            results,
        })
    }

    fn run(&mut self, command: &[&str]) -> Result<Output> {
        let quoted = command.iter().map(|it| it.replace('\'', r"'\''"));
        let quoted: Vec<_> = quoted.map(|it| format!("'{it}'")).collect();
        writeln!(self.commands, "run {}", quoted.join(" "))?;
        let (stdout, stderr) = (self.output()?, self.output()?);
        let mut status = String::new();
        self.results.read_line(&mut status)?;
        let code: i32 = status.trim_end().parse()?;
        Ok(Output {
            status: ExitStatus::from_raw(code << 8),
            stdout,
            stderr,
        })
    }

    fn output(&mut self) -> Result<Vec<u8>> {
        let end = format!("\n{END}\n");
        let mut output = vec![];
        while !output.ends_with(end.as_bytes()) {
            let read = self.results.read_until(b'\n', &mut output)?;
            ensure!(read > 0, "the shell has ended");
        }
        output.truncate(output.len() - end.len());
        Ok(output)
    }
}

impl Drop for RootShell {
    fn drop(&mut self) {
        let _ = self.docker.kill();
        let _ = self.docker.wait();
    }
}

/// `words` are split at spaces, `args` are passed as they are.
fn docker(words: &str, args: &[&str]) -> Result<String> {
    let sh = Shell::new()?;
    run(sh.cmd("docker").args(words.split(' ')).args(args))
}

/// Returns the command's stdout; if it fails, the error has all that it said.
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
