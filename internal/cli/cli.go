// Package cli is how each binary starts: settings from flags, environment and files, checked as a whole before anything
// else happens, then signals, run, exit code.
//
// Each setting is a field of a kong grammar with an env tag, and so a flag and an environment variable:
//
//	type settings struct {
//		DatabaseURL cli.Secret    `env:"DATABASE_URL" required:"" help:"Postgres."`
//		Delay       time.Duration `env:"CDC_DELAY" default:"1s" min:"10ms" max:"1m" help:"Longest wait of an event."`
//		cli.Log
//	}
//
// The command line wins over the environment, and the environment over the default. A variable that is set but empty
// counts as not set, because Compose files and shells pass unset variables on as empty ones. A setting of type [Secret]
// can also be read from a file, whose path is in the variable with _FILE at its end; its value appears neither in
// help nor in errors. One of type [Credential] is that, and follows its file while the program runs.
package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// Program is one binary, as the command line and help see it.
type Program struct {
	Name  string // as typed in a shell
	About string // what it does, in one or two sentences: the top of its help

	// Prefix is the beginning of the environment variables that belong to this program alone, such as CDC_. A variable
	// that has it and is no setting is an error, because it is a setting that somebody believes to be in force.
	Prefix string

	Args    []string  // without the program's name; nil: those of the process
	Environ []string  // as NAME=value; nil: that of the process
	Stdout  io.Writer // for help and version; nil: that of the process
}

// Parse fills grammar, a pointer to a struct with kong tags, and returns the parsed command line, whose Run runs
// the chosen command.
//
// It returns an [*Exit]: with [CodeSettings] and every problem found, one a line, if settings are wrong, and with
// [CodeClean] if help or the version was asked for and printed. Errors joined by the Validate method of the grammar or
// of the chosen command count as one problem each.
func (p Program) Parse(grammar any) (*kong.Context, error) {
	p = p.orProcess()
	envs := &environment{}
	var extra struct {
		Version bool `help:"Print version and revision, then exit."`
	}
	parser, err := kong.New(grammar,
		kong.Name(p.Name),
		kong.Description(p.About),
		kong.Embed(&extra),
		kong.Writers(p.Stdout, io.Discard),
		kong.ValueFormatter(envs.help),
		kong.KindMapper(reflect.Int, kong.MapperFunc(decimalInt)),
		kong.KindMapper(reflect.Int64, kong.MapperFunc(decimalInt)),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: helpWidth}),
	)
	if err != nil {
		return nil, fmt.Errorf("build the command line of %s: %w", p.Name, err)
	}
	if err := envs.take(parser.Model, p.Environ); err != nil {
		return nil, fmt.Errorf("build the command line of %s: %w", p.Name, err)
	}

	ctx, err := kong.Trace(parser, p.Args)
	if err != nil {
		return nil, fmt.Errorf("read the command line: %w", err)
	}
	if done, err := p.answer(ctx); done || err != nil {
		return nil, cmp.Or(err, error(&Exit{Code: CodeClean}))
	}
	problems := append(envs.unknown(p.Prefix), envs.apply(ctx)...)
	if len(problems) > 0 {
		return nil, p.wrong(envs, ctx.Selected(), problems)
	}
	return ctx, nil
}

// answer prints help or the version if the command line asks for one of them.
func (p Program) answer(ctx *kong.Context) (done bool, err error) {
	for _, path := range ctx.Path {
		switch {
		case path.Flag == nil:
		case path.Flag == ctx.Model.HelpFlag:
			return true, p.usage(ctx)
		case path.Flag.Name == "version":
			_, err := fmt.Fprintf(p.Stdout, "%s %s\n", p.Name, ReadBuild())
			return true, err
		}
	}
	return false, nil
}

// Run fills grammar as [Program.Parse] does, and runs the chosen command. Its Run method may take the context.
func (p Program) Run(ctx context.Context, grammar any) error {
	command, err := p.Parse(grammar)
	if err != nil {
		return err
	}
	command.BindTo(ctx, (*context.Context)(nil))
	return command.Run()
}

// usage prints help. That of a program which has a command by default tells of that one, too: its settings are the program's.
func (p Program) usage(ctx *kong.Context) error {
	usual := ctx.Model.DefaultCmd
	if ctx.Selected() != nil || usual == nil {
		return ctx.PrintUsage(false)
	}
	whole, err := kong.Trace(ctx.Kong, append([]string{usual.Name}, p.Args...))
	if err != nil {
		return fmt.Errorf("print help: %w", err)
	}
	if err := whole.PrintUsage(false); err != nil {
		return fmt.Errorf("print help: %w", err)
	}
	_, err = fmt.Fprintln(p.Stdout)
	return errors.Join(err, ctx.PrintUsage(false))
}

// wrong makes one error of all problems with a command, which is nil if the command line has none.
func (p Program) wrong(envs *environment, command *kong.Node, problems []error) error {
	name := p.Name
	if command != nil {
		name = command.FullPath()
	}
	lines := make([]string, 0, len(problems))
	for _, problem := range problems {
		// One setting may belong to several commands, and then has one problem several times.
		if line := envs.redact(problem.Error()); !slices.Contains(lines, line) {
			lines = append(lines, line)
		}
	}
	title := "1 setting is wrong"
	if len(lines) > 1 {
		title = fmt.Sprintf("%d settings are wrong", len(lines))
	}
	return &Exit{
		Code: CodeSettings,
		Err:  errors.New(title + "\n  " + strings.Join(lines, "\n  ")),
		Hint: fmt.Sprintf("%q lists every setting", name+" --help"),
	}
}

func (p Program) orProcess() Program {
	if p.Args == nil {
		p.Args = os.Args[1:]
	}
	if p.Environ == nil {
		p.Environ = os.Environ()
	}
	if p.Stdout == nil {
		p.Stdout = os.Stdout
	}
	return p
}
