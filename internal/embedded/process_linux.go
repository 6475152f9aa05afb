package embedded

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// quit and die are what children get when this process dies. Told to quit, Postgres takes its backends with it and removes its
// shared memory, which SIGKILL would leave.
const (
	quit = syscall.SIGQUIT
	die  = syscall.SIGKILL
)

// reapWait is how often [vanish] looks whether killed processes are gone. They are nobody's children, so there is nothing to
// wait on.
const reapWait = 2 * time.Millisecond

// supported says why this machine can't run the stores.
func supported() error {
	for _, loader := range []string{"/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"} {
		if _, err := os.Stat(loader); err == nil {
			return nil
		}
	}
	return errors.New("the embedded stores need Linux with glibc: use a server or a container")
}

// process is a child that dies with this process.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended and was waited for
	err  error         // how it ended; read after done
}

// spawn starts cmd as a child in a process group of its own, so that a Ctrl-C for this program is not also for it. The child
// gets signal death when this process dies in whatever way.
func spawn(cmd *exec.Cmd, death syscall.Signal, as *account) (*process, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: death}
	if as != nil {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: as.uid, Gid: as.gid}
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		// The kernel ties Pdeathsig to the thread that forked, not to its process. This goroutine keeps that thread until the
		// child has ended: without the lock, Go may end the thread, and the child with it, at any time.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		p.err = cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", filepath.Base(cmd.Path), err)
	}
	return p, nil
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// how says how it ended.
func (p *process) how() error {
	if p.err == nil {
		return errors.New("it ended by itself")
	}
	return fmt.Errorf("it ended: %w", p.err)
}

func (p *process) signal(s syscall.Signal) {
	_ = p.cmd.Process.Signal(s) // it may have ended, which is no news to anyone who reads done
}

// fast and immediate are the two ways to ask postgres to shut down; see "Shutting Down the Server" in its manual.
func (p *process) fast()      { p.signal(syscall.SIGINT) }
func (p *process) immediate() { p.signal(syscall.SIGQUIT) }

// kill ends the process and everything that descends from it, without a chance to write anything, and waits for all of it.
func (p *process) kill() {
	if p.ended() {
		return
	}
	// Its group would not do: a Postgres backend leads a session of its own.
	others := p.signalTree(syscall.SIGKILL)
	p.signal(syscall.SIGKILL)
	<-p.done
	vanish(others)
}

// signalTree stops the process, sends s to everything that descends from it, and returns that once s has had its effect on all. A
// stop takes effect a moment after it is sent, and until then a child may be born; hence the repetition.
func (p *process) signalTree(s syscall.Signal) (others []int) {
	p.signal(syscall.SIGSTOP)
	tick := time.NewTicker(reapWait)
	defer tick.Stop()
	for !p.ended() {
		state, _, ok := stat(p.cmd.Process.Pid)
		settled := !ok || state == 'T' || state == 'Z'
		others = descendants(p.cmd.Process.Pid)
		for _, pid := range others {
			if state, _, ok := stat(pid); !ok || state == 'Z' || state == 'X' || state == 'T' && s == syscall.SIGSTOP {
				continue
			}
			settled = false
			_ = syscall.Kill(pid, s)
		}
		if settled {
			break
		}
		<-tick.C
	}
	return others
}

// pause stops the process and everything that descends from it; resume lets all of it go on.
func (p *process) pause() {
	if !p.ended() {
		p.signalTree(syscall.SIGSTOP)
	}
}

func (p *process) resume() {
	if p.ended() {
		return
	}
	for _, pid := range descendants(p.cmd.Process.Pid) {
		_ = syscall.Kill(pid, syscall.SIGCONT)
	}
	p.signal(syscall.SIGCONT)
}

// vanish waits until none of the killed processes runs. Only then does Postgres accept the data directory again: it looks for
// processes that are still attached to the shared memory of the last server.
func vanish(pids []int) {
	tick := time.NewTicker(reapWait)
	defer tick.Stop()
	for slices.ContainsFunc(pids, func(pid int) bool { state, _, ok := stat(pid); return ok && state != 'Z' && state != 'X' }) {
		<-tick.C
	}
}

// descendants lists children, their children and so on.
func descendants(root int) []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	children := make(map[int][]int)
	for _, entry := range entries {
		if pid, err := strconv.Atoi(entry.Name()); err == nil {
			if _, parent, ok := stat(pid); ok {
				children[parent] = append(children[parent], pid)
			}
		}
	}
	var all []int
	for queue := []int{root}; len(queue) > 0; queue = queue[1:] {
		all = append(all, children[queue[0]]...)
		queue = append(queue, children[queue[0]]...)
	}
	return all
}

// stat reads the state and the parent of a process from /proc.
func stat(pid int) (state byte, parent int, ok bool) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, 0, false
	}
	// pid (name) state parent …, and the name may contain anything.
	fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	if len(fields) < 2 {
		return 0, 0, false
	}
	parent, err = strconv.Atoi(string(fields[1]))
	return fields[0][0], parent, err == nil
}

// lock takes an exclusive lock on a directory for as long as the returned file is open in this process.
func lock(dir string) (*os.File, error) {
	file, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return file, nil
}

// freeShared removes the System V shared memory of a Postgres that was killed, of which its postmaster.pid has the id in line 7.
// The next start on the same data would do so; without one it would stay until the machine restarts.
func freeShared(data string, pid int) {
	text, err := os.ReadFile(filepath.Join(data, "postmaster.pid"))
	if err != nil {
		return // it shut down in order
	}
	lines := strings.Split(string(text), "\n")
	if len(lines) < 7 || lines[0] != strconv.Itoa(pid) { // or somebody else's server is on the data now
		return
	}
	fields := strings.Fields(lines[6]) // key, id
	if len(fields) != 2 {
		return
	}
	if id, err := strconv.Atoi(fields[1]); err == nil {
		_, _ = unix.SysvShmCtl(id, unix.IPC_RMID, nil)
	}
}

// owner returns who owns a file.
func owner(info os.FileInfo) uint32 { return info.Sys().(*syscall.Stat_t).Uid }
