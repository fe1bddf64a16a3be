# The uml backend of rdma-vm: a User-Mode Linux kernel, built by build-uml from Debian's sources.
# Boots in 1 s and moves bytes several times faster than qemu; one processor, no sanitizers.
# Sourced by rdma-vm.

uml_kernel() { echo "$CACHE/linux-uml-$1"; }

# setup_uml SERIES
setup_uml() {
  [ -x "$(uml_kernel "$1")" ] || "$PARTS/build-uml" "$1" "$CACHE"
}

# start_uml RANK JOB: becomes the kernel; the command's output goes to descriptors 3 and 4.
start_uml() {
  local rank=$1 job=$2 kernel net=()
  kernel=$(uml_kernel "$KERNEL")
  [ -x "$kernel" ] || die "run 'rdma-vm setup --backend uml --kernel $KERNEL' first"
  if [ "$VMS" = 2 ]; then # the wire is an inherited pair of Unix sockets, see with_wire
    local ends=($RIG_WIRE)
    local mac="52:54:00:77:00:0$((rank + 1))"
    net=("vec0:transport=fd,fd=${ends[rank]},mtu=4200,depth=64,mac=$mac")
  fi
  # Its memory is an unlinked file: in /dev/shm if that has room, else in $TMPDIR.
  local free
  free=$(df --output=avail -m /dev/shm 2>/dev/null | tail -1) || free=0
  if [ "${free:-0}" -lt "$MEM" ]; then export TMPDIR=${TMPDIR:-/tmp}; else unset TMPDIR TMP TEMP; fi
  # In a pid namespace of its own, where there may be one, its helpers cannot outlive it.
  local alone=()
  unshare --pid --fork --kill-child true 2>/dev/null && alone=(unshare --pid --fork --kill-child)
  exec ${alone[0]+"${alone[@]}"} timeout -s KILL "$TIMEOUT" "$kernel" "mem=${MEM}M" \
    root=/dev/root rootfstype=hostfs rootflags=/ ro quiet "init=$PARTS/guest/uml-init" \
    "uml_dir=$job" "RIG_JOB=$job" "RIG_PKGS=$CACHE/guest" con=null con0=null,fd:1 con1=null,fd:3 \
    con2=null,fd:4 ${net[0]+"${net[@]}"} </dev/null >"$job/console" 2>&1
}

# Starts rdma-vm over with a socket pair open, unless that was done.  Perl is on every Debian.
with_wire() {
  [ -z "${RIG_WIRE:-}" ] || return 0
  RIG_WIRE="60 61" exec perl -MSocket -MPOSIX=dup2 -e '
    socketpair(A, B, AF_UNIX, SOCK_SEQPACKET, 0) && dup2(fileno(A), 60) && dup2(fileno(B), 61)
      or die "wire: $!";
    exec @ARGV or die' bash "$0" run "$@"
}
