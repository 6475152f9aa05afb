package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is a program that is measured. It ends when this one ends, in whatever way.
type process struct {
	name   string
	cmd    *exec.Cmd
	addr   chan string // where it serves HTTP, once it says so
	exited chan struct{}
	tail   string // the end of what it printed; read after exited
	cpu    time.Duration
}

func launch(ctx context.Context, name, path string, args, settings []string) (*process, error) {
	p := &process{name: name, addr: make(chan string, 1), exited: make(chan struct{})}
	p.cmd = exec.CommandContext(context.WithoutCancel(ctx), path, args...)
	p.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "TMPDIR=" + os.TempDir()}, settings...)
	for _, name := range []string{"GOGC", "GOMEMLIMIT", "GOMAXPROCS", "GODEBUG"} { // to see what they do
		if value, set := os.LookupEnv(name); set {
			p.cmd.Env = append(p.cmd.Env, name+"="+value)
		}
	}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	out, err := p.cmd.StderrPipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p.cmd.Stdout = p.cmd.Stderr
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the kernel ties Pdeathsig to the thread that started the child
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		p.read(out)
		_ = p.cmd.Wait() // the caller looks at the outcome
		p.cpu = p.cmd.ProcessState.UserTime() + p.cmd.ProcessState.SystemTime()
		close(p.exited)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return p, nil
}

func (p *process) read(out io.Reader) {
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadString('\n')
		var entry struct{ Addr, Message string }
		if json.Unmarshal([]byte(line), &entry) == nil && strings.HasPrefix(entry.Message, "serving") && entry.Addr != "" {
			select {
			case p.addr <- entry.Addr:
			default:
			}
		}
		const kept = 2000
		p.tail += line
		p.tail = p.tail[max(0, len(p.tail)-kept):]
		if err != nil {
			return
		}
	}
}

// peak is the most memory that it has had, in MiB. Only while it runs.
func (p *process) peak() (float64, error) {
	status, err := os.ReadFile("/proc/" + strconv.Itoa(p.cmd.Process.Pid) + "/status")
	if err != nil {
		return 0, fmt.Errorf("memory of %s: %w", p.name, err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, is := strings.CutPrefix(line, "VmHWM:"); is {
			kib, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 64)
			return kib / 1024, err
		}
	}
	return 0, errors.New("the kernel tells no VmHWM")
}

// stop asks it to end, and waits.
func (p *process) stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-p.exited:
	case <-time.After(time.Minute):
		_ = p.cmd.Process.Kill()
		<-p.exited
	}
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		return fmt.Errorf("%s ended with code %d: %s", p.name, code, p.tail)
	}
	return nil
}

// kill ends it at once, for contenders that know no other end.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.exited
}

// serves waits until the program says where it serves HTTP.
func (p *process) serves(ctx context.Context) (string, error) {
	select {
	case addr := <-p.addr:
		return "http://" + addr, nil
	case <-p.exited:
		return "", fmt.Errorf("%s ended: %s", p.name, p.tail)
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// find looks for a program of Postgres, on the PATH and where Debian puts it.
func find(name, hint string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name) // the pattern is right
	if len(found) == 0 {
		return "", fmt.Errorf("%s is missing: %s", name, hint)
	}
	return found[len(found)-1], nil
}

// command runs a program to its end and returns what it printed.
func command(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// poll calls done until it says yes.
func poll(ctx context.Context, every, limit time.Duration, done func() (bool, error)) error {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for end := time.Now().Add(limit); ; {
		if yes, err := done(); err != nil || yes {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("not done after %v", limit)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
