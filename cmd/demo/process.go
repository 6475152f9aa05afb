package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// startTimeout bounds the start of a program, and stopTimeout its graceful end.
const (
	startTimeout = 60 * time.Second
	stopTimeout  = 30 * time.Second
)

// process is a program of ours that keeps running.
type process struct {
	name string
	url  string
	log  string // path of its log
	cmd  *exec.Cmd
	done chan struct{}
	err  error // how it ended; read after done
}

// finish runs a program to its end.
func (d *demo) finish(ctx context.Context, path string, env []string, args ...string) error {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = environment(env)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", filepath.Base(path), strings.Join(args, " "), err, strings.TrimSpace(out.String()))
	}
	return nil
}

// launch starts a program that listens on an address: the wanted one, or a free one if that is taken. setting is the
// variable that tells the program.
func (d *demo) launch(ctx context.Context, path, address, setting string, env []string, args ...string) (*process, error) {
	address, err := free(ctx, address)
	if err != nil {
		return nil, err
	}
	p := &process{name: filepath.Base(path), url: "http://" + address, log: path + ".log", done: make(chan struct{})}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	defer func() { _ = log.Close() }() // the child has its own
	p.cmd = exec.CommandContext(context.WithoutCancel(ctx), path, args...)
	p.cmd.Env = environment(append(env, setting+"="+address))
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for the demo, which stops them in order
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// environment is what a program of the demo is started with: nothing of ours that the caller has set reaches it.
func environment(settings []string) []string {
	var env []string
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "CDC_") && !strings.HasPrefix(variable, "API_") {
			env = append(env, variable)
		}
	}
	return append(env, settings...)
}

func free(ctx context.Context, address string) (string, error) {
	var lc net.ListenConfig
	for _, try := range []string{address, "127.0.0.1:0"} {
		listener, err := lc.Listen(ctx, "tcp", try)
		if err != nil {
			continue
		}
		defer func() { _ = listener.Close() }()
		return listener.Addr().String(), nil
	}
	return "", fmt.Errorf("no free port to listen on beside %s", address)
}

// ready waits until the program says that it is.
func (p *process) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		answer, err := p.ask(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-p.done:
			return p.ended()
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w: %s\n%s", p.name, ctx.Err(), answer, p.tail())
		}
	}
}

func (p *process) ask(ctx context.Context) (answer string, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url+"/readyz", nil)
	if err != nil {
		return "", fmt.Errorf("ask %s: %w", p.name, err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", fmt.Errorf("ask %s: %w", p.name, err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, 4096))
	if err == nil && response.StatusCode != http.StatusOK {
		err = errors.New(response.Status)
	}
	return strings.TrimSpace(string(body)), err
}

// ended tells of a program that has ended by itself.
func (p *process) ended() error {
	how := "exit code 0"
	if p.err != nil {
		how = p.err.Error()
	}
	return fmt.Errorf("%s ended by itself, %s; its log:\n%s", p.name, how, p.tail())
}

// tail is the end of the log.
func (p *process) tail() string {
	log, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	const most = 4000
	return string(log[max(0, len(log)-most):])
}

// stop asks the program to end and waits for it.
func (p *process) stop() error {
	select {
	case <-p.done:
		return p.ended()
	default:
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop %s: %w", p.name, err)
	}
	select {
	case <-p.done:
	case <-time.After(stopTimeout):
		return fmt.Errorf("stop %s: it did not end, killed: %w", p.name, p.cmd.Process.Kill())
	}
	if p.err != nil {
		return fmt.Errorf("stop %s: %w\n%s", p.name, p.err, p.tail())
	}
	return nil
}
