# The qemu backend of rdma-vm: a stock Debian kernel under qemu's own emulation (no KVM needed).
# Boots in 5 s and is slow, but runs sanitizers and has two processors.
# Sourced by rdma-vm.

# In the initial file system, in this order, with what they depend on.
QEMU_MODULES="virtio_pci virtio_console 9pnet_virtio 9p overlay virtio_net dummy veth sch_netem
              crc32_generic crc32c_generic ib_umad rdma_ucm rdma_rxe"

qemu_kernel() { echo "$CACHE/kernel-$1"; }

# setup_qemu SERIES: fetches the emulator and the kernel, and makes the initial file system.
setup_qemu() {
  local series=$1 dir key meta image
  dir=$(qemu_kernel "$series")
  fetch "$CACHE/qemu" qemu-system-x86
  fetch "$CACHE/tools-qemu" xz-utils zstd
  key=$(cat "$PARTS/guest/qemu-init" "$PARTS/qemu.sh" | md5sum | cut -c1-32)
  [ -e "$dir/.done" ] && [ "$(tail -1 "$dir/.done")" = "$key" ] && return 0
  case $series in 6.1) meta=linux-image-amd64 ;; *) meta=linux-image-$series-amd64 ;; esac
  image=$(apt-cache depends "$meta" |
    sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -1)
  [ -n "$image" ] || die "no package $meta (try apt-get update)"
  say "fetching $image"
  rm -rf "$dir"
  mkdir -p "$dir/x"
  download "$dir" "$image"
  dpkg-deb --fsys-tarfile "$dir"/*.deb | tar -C "$dir/x" -x --wildcards \
    './boot/vmlinuz*' './lib/modules/*' './usr/lib/modules/*' 2>/dev/null || true
  rm -f "$dir"/*.deb
  local PATH="$CACHE/tools-qemu/usr/bin:$PATH"
  unpack_kernel "$dir"
  make_initrd "$dir"
  rm -rf "$dir/x"
  printf '%s\n' "$image" "$key" >"$dir/.done"
}

# An uncompressed ELF kernel boots through PVH, which saves 2 seconds of emulated decompression.
unpack_kernel() {
  local dir=$1 packed tool offset
  packed=$(ls "$dir"/x/boot/vmlinuz-*)
  for tool in 'xz -dc:\xfd7zXZ\x00' 'zstd -dcq:\x28\xb5\x2f\xfd'; do
    offset=$(LC_ALL=C grep -abom1 -P "${tool#*:}" "$packed" | head -1 | cut -d: -f1) || continue
    tail -c "+$((offset + 1))" "$packed" | ${tool%%:*} >"$dir/vmlinux" 2>/dev/null || true
    [ "$(head -c 4 "$dir/vmlinux" | tail -c 3)" = ELF ] && return 0
    rm -f "$dir/vmlinux"
  done
  cp "$packed" "$dir/vmlinux"
}

# busybox, the modules in the order to load them, and the first process.
make_initrd() {
  local dir=$1 root="$1/initrd.d" tree busybox="$CACHE/guest/usr/bin/busybox" module
  tree=$(echo "$dir"/x/*lib/modules/*/kernel "$dir"/x/usr/lib/modules/*/kernel |
    tr ' ' '\n' | grep -v '\*' | head -1)
  mkdir -p "$root"/{bin,modules,proc,sys,dev,host,pkgs,rw,new}
  [ -x "$busybox" ] || busybox=/bin/busybox
  cp "$busybox" "$root/bin/"
  find "$tree" -name '*.ko*' >"$dir/modules.list"
  : >"$root/modules/order"
  for module in $QEMU_MODULES; do add_module "$dir" "$root" "$module"; done
  cp "$PARTS/guest/qemu-init" "$root/init"
  chmod 755 "$root/init"
  (cd "$root" && find . | "$root/bin/busybox" cpio -o -H newc >"$dir/initrd" 2>/dev/null)
  rm -rf "$root" "$dir/modules.list"
}

# add_module DIR ROOT NAME: the module, behind those it depends on.
add_module() {
  local dir=$1 root=$2 name=${3//-/_} file needed
  grep -qx "$name" "$root/modules/order" && return 0
  file=$(grep -E "/${name//_/[-_]}\.ko(\.xz|\.zst)?$" "$dir/modules.list" | head -1) || true
  [ -n "$file" ] || return 0 # built in
  case $file in
    *.xz) xz -dc "$file" ;;
    *.zst) zstd -dcq "$file" ;;
    *) cat "$file" ;;
  esac >"$root/modules/$name.ko"
  for needed in $(tr '\0' '\n' <"$root/modules/$name.ko" |
    LC_ALL=C sed -n 's/^depends=//p' | head -1 | tr , ' '); do
    add_module "$dir" "$root" "$needed"
  done
  echo "$name" >>"$root/modules/order"
}

# start_qemu RANK JOB: becomes the emulator; the command's output goes to descriptors 3 and 4.
start_qemu() {
  local rank=$1 job=$2 i kernel qemu="$CACHE/qemu" program=qemu-system-x86_64 args=()
  kernel=$(qemu_kernel "$KERNEL")
  [ -e "$kernel/vmlinux" ] || die "run 'rdma-vm setup --backend qemu --kernel $KERNEL' first"
  if [ -x "$qemu/usr/bin/$program" ]; then
    export LD_LIBRARY_PATH="$qemu/usr/lib/x86_64-linux-gnu"
    program="$qemu/usr/bin/$program"
    args=(-L "$qemu/usr/share/qemu" -L "$qemu/usr/share/seabios")
  fi
  local boot="console=ttyS0 quiet panic=-1 mitigations=off nokaslr audit=0 apparmor=0"
  boot+=" 8250.nr_uarts=1 rig.shares=${#SHARES[@]}"
  args+=(-M "pc,vmport=off" -nodefaults -no-user-config -display none -no-reboot
    -m "$MEM" -smp "$CPUS" -accel "tcg,thread=multi,tb-size=512" -cpu "max,la57=off"
    -kernel "$kernel/vmlinux" -initrd "$kernel/initrd" -append "$boot"
    -chardev "file,id=log,path=$job/console" -serial chardev:log
    -device virtio-serial-pci
    -add-fd "fd=3,set=3" -chardev "file,id=out,path=/dev/fdset/3,append=on"
    -device "virtserialport,chardev=out,nr=1"
    -add-fd "fd=4,set=4" -chardev "file,id=err,path=/dev/fdset/4,append=on"
    -device "virtserialport,chardev=err,nr=2")
  local model="security_model=none"
  args+=(-virtfs "local,id=root,path=/,mount_tag=root,$model,readonly=on,multidevs=remap"
    -virtfs "local,id=pkgs,path=$CACHE/guest,mount_tag=pkgs,$model,readonly=on"
    -virtfs "local,id=job,path=$job,mount_tag=job,$model")
  for i in "${!SHARES[@]}"; do
    args+=(-virtfs "local,id=rw$i,path=${SHARES[i]},mount_tag=rw$i,$model,multidevs=remap")
  done
  if [ "$VMS" = 2 ]; then # a wire of two Unix datagram sockets: nothing leaves this machine
    local wire="dgram,id=wire,local.type=unix,local.path=$WORK/wire$rank"
    args+=(-netdev "$wire,remote.type=unix,remote.path=$WORK/wire$((1 - rank))"
      -device "virtio-net-pci,netdev=wire,mac=52:54:00:77:00:0$((rank + 1)),romfile=")
  fi
  exec timeout -k 5 "$TIMEOUT" "$program" "${args[@]}" </dev/null >"$job/emulator" 2>&1
}
