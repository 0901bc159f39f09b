#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# boot.sh VMLINUZ INITRD PORT [FILESYSTEM DISK LOG]: run the phone with its serial console on
# stdout, its adbd at 127.0.0.1:PORT and /data on the image DISK, all writes to which
# go to LOG, too. LAB_TIMEOUT (seconds) ends a forgotten phone. With LAB_ICOUNT=1 the
# phone has one processor, and a ns of its clock is one of its instructions, whatever
# else the host does; while it sleeps its clock leaps.
set -euo pipefail
vmlinuz=$1 initrd=$2 port=$3 fs=${4-} disk=${5-} log=${6-}

# Flushes need not reach the host's disk: the log has them, and a phone that is
# killed leaves the host's page cache as it is.
device=()
if [[ -n $disk ]]; then
    device=(-blockdev "driver=file,node-name=image,filename=$disk,cache.no-flush=on"
        -blockdev "driver=file,node-name=log,filename=$log,cache.no-flush=on"
        -blockdev "driver=blklogwrites,node-name=disk,file=image,log=log" -device "virtio-blk-pci,drive=disk,discard=off,write-zeroes=off")
fi

cpu=${LAB_CPU:-cortex-a72} speed=(-accel "tcg,thread=multi" -smp 2)
# A timer of 1 GHz, which tells single instructions apart.
[[ -z ${LAB_ICOUNT-} ]] || cpu+=,cntfrq=1000000000 speed=(-accel "tcg,thread=single" -smp 1 -icount "shift=0,sleep=off")

# cortex-a72: "max" spends its time emulating pointer authentication.
# kpti=off: with page table isolation QEMU forgets its TLB at each system call,
# which makes the phone a fifth slower. Nothing that BPF sees depends on it.
# restrict=on: the guest reaches nothing but the forwarded port's other end.
exec timeout -k 5 "${LAB_TIMEOUT:-1800}" qemu-system-aarch64 \
    -M virt,gic-version=3 -cpu "$cpu" "${speed[@]}" -m 1G \
    -display none -monitor none -serial stdio -no-reboot -nodefaults \
    -netdev "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:$port-:5555" -device virtio-net-pci,netdev=net,romfile= \
    -device virtio-rng-pci "${device[@]}" \
    -kernel "$vmlinuz" -initrd "$initrd" \
    -append "console=ttyAMA0 panic=-1 loglevel=4 net.ifnames=0 kpti=off lab_time=$(date +%s) ${fs:+lab_disk=$fs }${LAB_APPEND:-}"
