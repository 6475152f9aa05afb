package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

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

// process is a program under test that keeps running. Its log is in a file, and each line is looked at as it comes.
type process struct {
	name   string
	cmd    *exec.Cmd
	url    atomic.Pointer[string] // where it serves HTTP; nil until it has said so
	exited chan struct{}
	code   int         // -1: killed by a signal; read after exited
	asked  atomic.Bool // somebody has told it to end, or killed it
}

// launch starts a program. It ends when this process ends in whatever way.
func launch(ctx context.Context, name, path string, args, settings []string, logs string, inspect func(source, line string)) (*process, error) {
	file, err := os.OpenFile(filepath.Join(logs, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &process{name: name, exited: make(chan struct{})}
	p.cmd = exec.CommandContext(context.WithoutCancel(ctx), path, args...)
	p.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "TMPDIR=" + os.TempDir()}, settings...)
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
		defer func() { _ = file.Close() }()
		err := p.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		p.read(out, file, inspect)
		_ = p.cmd.Wait() // the code tells
		p.code = p.cmd.ProcessState.ExitCode()
		close(p.exited)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return p, nil
}

func (p *process) read(out io.Reader, file io.Writer, inspect func(source, line string)) {
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadString('\n')
		if line != "" {
			_, _ = io.WriteString(file, line) // a full disk shows elsewhere
			inspect(p.name, line)
			var entry struct{ Addr, Message string }
			if p.url.Load() == nil && json.Unmarshal([]byte(line), &entry) == nil && strings.HasPrefix(entry.Message, "serving") && entry.Addr != "" {
				url := "http://" + entry.Addr
				p.url.Store(&url)
			}
		}
		if err != nil {
			return
		}
	}
}

func (p *process) signal(s syscall.Signal) {
	if s == syscall.SIGKILL || s == syscall.SIGTERM {
		p.asked.Store(true)
	}
	_ = p.cmd.Process.Signal(s) // it may have ended, which is no news to who reads exited
}

func (p *process) ended() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// stopped tells whether a SIGSTOP holds the process.
func (p *process) stopped() bool {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(p.cmd.Process.Pid) + "/stat")
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(data), ") ")
	return strings.HasPrefix(rest, "T")
}

// sleep waits for d; false: ctx was done first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// poll calls done until it says yes, or for limit at most.
func poll(ctx context.Context, limit time.Duration, done func() bool) bool {
	const pause = 20 * time.Millisecond
	for end := time.Now().Add(limit); ; {
		if done() {
			return true
		}
		if time.Now().After(end) || !sleep(ctx, pause) {
			return false
		}
	}
}
