package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// diskSize is the size of the disk that a store's data are on. What a run writes stays far below it.
const diskSize = 24 << 30

// memoryDiskSize is that of a disk in memory, where there are no loop devices.
const memoryDiskSize = 3 << 30

const diskPrefix = "sluicebox-disk-"

// disk is a small file system that holds nothing but the data of one store.
type disk struct {
	dir  string // holds the mount point, data, and what the store keeps beside it
	data string
}

// openDisk mounts a file system: in a sparse file, which takes no more room than what is written, or in memory. It needs root.
func openDisk(ctx context.Context, name string) (_ *disk, err error) {
	dir := filepath.Join(os.TempDir(), diskPrefix+strconv.Itoa(os.Getpid())+"-"+name)
	d := &disk{dir: dir, data: filepath.Join(dir, "data")}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(dir) // nothing is mounted there
		}
	}()
	if err := os.MkdirAll(d.data, 0o755); err != nil {
		return nil, fmt.Errorf("make a disk: %w", err)
	}
	if err := d.mount(ctx); err != nil {
		return nil, fmt.Errorf("make a disk: %w", err)
	}
	if err := os.RemoveAll(filepath.Join(d.data, "lost+found")); err != nil { // initdb wants an empty folder
		return nil, errors.Join(err, d.close(ctx))
	}
	return d, nil
}

func (d *disk) mount(ctx context.Context) error {
	image := filepath.Join(d.dir, "image")
	inFile := func() error {
		if err := os.WriteFile(image, nil, 0o600); err != nil {
			return err
		}
		if err := os.Truncate(image, diskSize); err != nil {
			return err
		}
		// No journal: it is never cut off from its power.
		if _, err := command(ctx, d.dir, "mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", image); err != nil {
			return err
		}
		_, err := command(ctx, d.dir, "mount", "-o", "loop", image, d.data)
		return err
	}
	err := inFile()
	if err == nil {
		return nil
	}
	_ = os.Remove(image)
	if _, inMemory := command(ctx, d.dir, "mount", "-t", "tmpfs", "-o", "size="+strconv.Itoa(memoryDiskSize), "tmpfs", d.data); inMemory != nil {
		return errors.Join(err, inMemory)
	}
	return nil
}

// close unmounts and removes it. Nobody may use it any more.
func (d *disk) close(ctx context.Context) error {
	if d == nil {
		return nil
	}
	if _, err := command(ctx, "/", "umount", d.data); err != nil {
		return err
	}
	return os.RemoveAll(d.dir)
}

// fill takes all room that is left, and returns what gives it back.
func (d *disk) fill() (free func() error, err error) {
	path := filepath.Join(d.data, "ballast")
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("fill a disk: %w", err)
	}
	defer func() { _ = file.Close() }() // what it holds is of no matter
	free = func() error { return os.RemoveAll(path) }
	const least = 4 << 10
	var size int64
	for chunk := int64(diskSize); chunk >= least; {
		switch err := syscall.Fallocate(int(file.Fd()), 0, size, chunk); {
		case err == nil:
			size += chunk
		case errors.Is(err, syscall.EINTR):
		case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EFBIG):
			chunk /= 2
		default:
			return free, fmt.Errorf("fill a disk: %w", err)
		}
	}
	return free, nil
}

// sweepDisks removes disks of runs that were killed.
func sweepDisks(ctx context.Context) {
	found, _ := filepath.Glob(filepath.Join(os.TempDir(), diskPrefix+"*"))
	for _, dir := range found {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), diskPrefix), "-")
		if _, err := os.Stat("/proc/" + pid); err == nil {
			continue
		}
		_, _ = command(ctx, "/", "umount", filepath.Join(dir, "data"))
		_ = os.Remove(filepath.Join(dir, "image")) // a courtesy, as all of it
		_ = os.RemoveAll(dir)
	}
}
