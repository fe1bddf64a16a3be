# What rdma-vm needs of Debian, fetched with apt into the cache and unpacked there: nothing is installed.
# Sourced by rdma-vm, which sets CACHE and defines say and die.

APT=(apt-get -y -q --no-install-recommends -o Debug::NoLocking=1 -o APT::Sandbox::User=root)

# fetch DIR PACKAGE..: the packages, and whatever of their dependencies this host lacks, unpacked
# under DIR.
fetch() {
  local dir=$1 debs deb package
  debs="$CACHE/debs.$(basename "$1")"
  shift
  [ -e "$dir/.done" ] && [ "$(cat "$dir/.done")" = "$*" ] && return 0
  say "fetching $*"
  rm -rf "$dir"
  mkdir -p "$dir" "$debs/partial"
  rm -f "$debs"/*.deb
  local want=()
  for package; do
    dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed ||
      want+=("$package")
  done
  if [ ${#want[@]} -gt 0 ]; then
    "${APT[@]}" -o Dir::Cache::archives="$debs" --download-only install "${want[@]}" \
      >"$CACHE/apt.log" 2>&1 ||
      { tail -5 "$CACHE/apt.log" >&2; die "apt could not fetch $* (try apt-get update)"; }
  fi
  # The merged-/usr layout, so that the tree can lie over the host's / without hiding the links
  # that its /lib and /bin are.
  mkdir -p "$dir"/usr/{bin,sbin,lib,lib64}
  for package in bin sbin lib lib64; do ln -s "usr/$package" "$dir/$package"; done
  for deb in "$debs"/*.deb; do
    [ -e "$deb" ] || continue
    case $(basename "$deb") in libc6_* | libc-bin_*) continue ;; esac # never a second glibc
    dpkg-deb --fsys-tarfile "$deb" | tar -C "$dir" --keep-directory-symlink -x
  done
  for package in bin sbin lib lib64; do rm -f "$dir/$package"; done
  rm -rf "$debs"
  echo "$*" >"$dir/.done"
}

# download DIR PACKAGE: one package file, without what it depends on.
download() {
  mkdir -p "$1"
  (cd "$1" && "${APT[@]}" download "$2" >"$CACHE/apt.log" 2>&1) ||
    die "apt-get download $2 failed (try apt-get update)"
}

# What programs in the guest find besides the host's own files.
fetch_guest() {
  mkdir -p "$CACHE"
  fetch "$CACHE/guest" libibverbs1 ibverbs-providers librdmacm1 rdma-core ibverbs-utils \
    rdmacm-utils perftest iproute2 busybox-static
}
