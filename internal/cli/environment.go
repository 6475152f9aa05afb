package cli

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// fileSuffix ends the name of a variable that holds the path of a file with a secret.
const fileSuffix = "_FILE"

// maxSecretFile is the longest file, in bytes, that is taken for a secret. A longer one is a wrong path.
const maxSecretFile = 64 << 10

// environment gives flags their values from environment variables. It takes that over from kong, which stops at the
// first bad value, prints it, and knows nothing of files or of misspelt names.
type environment struct {
	values  map[string]string
	names   map[*kong.Value]string // the variable of each flag
	flags   []*kong.Flag           // of all commands
	ranges  map[*kong.Value]limits
	secrets []string // values that must not be printed
}

// take removes the env tags from the model, so that kong does not look at the environment, and remembers them.
func (e *environment) take(model *kong.Application, environ []string) error {
	e.values = map[string]string{}
	for _, pair := range environ {
		name, value, _ := strings.Cut(pair, "=")
		if value != "" {
			e.values[name] = value
		}
	}
	e.names = map[*kong.Value]string{}
	e.ranges = map[*kong.Value]limits{}
	return kong.Visit(model, func(node kong.Visitable, next kong.Next) error {
		flag, ok := node.(*kong.Flag)
		if !ok {
			return next(nil)
		}
		e.flags = append(e.flags, flag)
		if len(flag.Tag.Envs) > 0 {
			e.names[flag.Value] = flag.Tag.Envs[0]
			flag.Envs, flag.Tag.Envs = nil, nil
		}
		if flag.PlaceHolder == "" {
			flag.PlaceHolder = placeholder(flag.Value)
		}
		var err error
		e.ranges[flag.Value], err = readLimits(flag.Value)
		return next(err)
	})
}

// unknown returns a problem for each variable that has the prefix and belongs to no setting.
func (e *environment) unknown(prefix string) (problems []error) {
	if prefix == "" {
		return nil
	}
	known := map[string]bool{}
	for value, name := range e.names {
		known[name] = true
		if isSecret(value) {
			known[name+fileSuffix] = true
		}
	}
	names := slices.Sorted(maps.Keys(known))
	for _, name := range slices.Sorted(maps.Keys(e.values)) {
		if !strings.HasPrefix(name, prefix) || known[name] || isServiceLink(name, e.values[name]) {
			continue
		}
		near := nearest(name, names)
		if plain := strings.TrimSuffix(name, fileSuffix); known[plain] {
			near = plain // no secret, so not to be read from a file
		}
		if near != "" {
			problems = append(problems, fmt.Errorf("%s: unknown setting, did you mean %s?", name, near))
		} else {
			problems = append(problems, fmt.Errorf("%s: unknown setting", name))
		}
	}
	return problems
}

// serviceLink matches the variables that Kubernetes sets in each container for each service of the namespace. A service
// named api or cdc would otherwise keep a program of that name from starting.
var serviceLink = regexp.MustCompile(`_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$`)

func isServiceLink(name, value string) bool {
	return serviceLink.MatchString(name) || strings.HasSuffix(name, "_PORT") && strings.Contains(value, "://")
}

// apply sets every flag: from the command line, else from the environment, else to its default. It goes on after a
// problem, and returns them all.
func (e *environment) apply(ctx *kong.Context) (problems []error) {
	if err := ctx.Reset(); err != nil {
		problems = append(problems, err)
	}
	chosen, given := ctx.Flags(), map[*kong.Flag]bool{}
	for _, path := range ctx.Path {
		given[path.Flag] = true
	}
	broken := map[*kong.Flag]bool{}
	for _, flag := range e.flags {
		value, found, err := e.lookup(flag.Value)
		if err == nil && !found {
			continue
		}
		scratch := reflect.New(flag.Target.Type()).Elem()
		if err == nil {
			err = e.decode(flag.Value, value, scratch)
		}
		if credential, is := reflect.TypeAssert[*Credential](scratch.Addr()); is {
			credential.path = e.values[e.names[flag.Value]+fileSuffix]
		}
		switch {
		case err != nil:
			problems = append(problems, fmt.Errorf("%s: %w", e.names[flag.Value], err))
			broken[flag] = true
		case slices.Contains(chosen, flag) && !given[flag]:
			flag.Apply(scratch)
		}
	}
	if ctx.Error != nil {
		// What follows on the command line was not read.
		return append(problems, ctx.Error)
	}
	if _, err := ctx.Apply(); err != nil {
		problems = append(problems, err)
	}
	for _, flag := range chosen {
		if given[flag] {
			if err := e.ranges[flag.Value].check(flag.Target); err != nil {
				problems = append(problems, fmt.Errorf("--%s: %w", flag.Name, err))
			}
		}
		if flag.Required && !flag.Set && !broken[flag] {
			problems = append(problems, e.missing(flag))
		}
		// Said above, for all flags; kong would say it again for the first, and stop there.
		flag.Required, flag.Enum, flag.Tag.Enum = false, "", ""
	}
	return append(problems, split(ctx.Validate())...)
}

// lookup returns the value that the environment has for a flag.
func (e *environment) lookup(flag *kong.Value) (value string, found bool, err error) {
	name, ok := e.names[flag]
	if !ok {
		return "", false, nil
	}
	value, found = e.values[name]
	if !isSecret(flag) {
		return value, found, nil
	}
	path, fromFile := e.values[name+fileSuffix]
	switch {
	case found && fromFile:
		e.secrets = append(e.secrets, value)
		return "", false, fmt.Errorf("set together with %s; keep one of them", name+fileSuffix)
	case fromFile:
		if value, err = readSecret(path); err != nil {
			return "", false, fmt.Errorf("read the file that %s names: %w", name+fileSuffix, err)
		}
	case !found:
		return "", false, nil
	}
	e.secrets = append(e.secrets, value)
	return value, true, nil
}

// readSecret returns what is in a file, without the line end that editors and `echo` leave there.
func readSecret(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if info.IsDir() || info.Size() > maxSecretFile {
		return "", fmt.Errorf("%s is not a file of at most %d bytes", path, maxSecretFile)
	}
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = file.Close() }()                               // only read
	content, err := io.ReadAll(io.LimitReader(file, maxSecretFile+1)) // of a pipe, Stat knows no size
	if err != nil {
		return "", err
	}
	if len(content) > maxSecretFile {
		return "", fmt.Errorf("%s is not a file of at most %d bytes", path, maxSecretFile)
	}
	secret := strings.TrimRight(string(content), "\r\n")
	if secret == "" {
		return "", fmt.Errorf("%s is empty", path)
	}
	return secret, nil
}

// decode reads text into target as kong does for the flag, and checks enum and range.
func (e *environment) decode(flag *kong.Value, text string, target reflect.Value) error {
	if err := decode(flag, text, target); err != nil {
		return err
	}
	return e.ranges[flag].check(target)
}

func decode(flag *kong.Value, text string, target reflect.Value) error {
	scan := kong.ScanFromTokens(kong.Token{Type: kong.FlagValueToken, Value: text})
	return flag.Mapper.Decode(&kong.DecodeContext{Value: flag, Scan: scan}, target)
}

func (e *environment) missing(flag *kong.Flag) error {
	name := e.names[flag.Value]
	switch {
	case name == "":
		return fmt.Errorf("--%s: required", flag.Name)
	case isSecret(flag.Value):
		return fmt.Errorf("%s: required; set it, or %s to the path of a file that holds it, or pass --%s",
			name, name+fileSuffix, flag.Name)
	default:
		return fmt.Errorf("%s: required; set it, or pass --%s", name, flag.Name)
	}
}

// credentials matches the user part of a URL, and a password among its parameters or those of a connection string.
var credentials = regexp.MustCompile(`(://)[^\s"]*@|((?i:password)\s*=\s*)('(?:[^'\\]|\\.)*'?|[^&\s"]+)`)

// minRedacted is the shortest secret, in bytes, that is looked for in messages. Shorter ones are parts of ordinary words.
const minRedacted = 4

// redact hides the secrets of the environment in a message.
func (e *environment) redact(message string) string {
	message = credentials.ReplaceAllStringFunc(message, func(found string) string {
		if found == "://user:password@" { // an example
			return found
		}
		return credentials.ReplaceAllString(found, "${1}${2}"+hidden)
	})
	for _, secret := range e.secrets {
		if len(secret) >= minRedacted {
			message = strings.ReplaceAll(message, secret, hidden)
		}
	}
	return message
}

// split returns the errors that err joins, however deep it wraps them.
func split(err error) []error {
	var joined interface{ Unwrap() []error }
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &joined):
		return []error{err}
	}
	var all []error
	for _, one := range joined.Unwrap() {
		all = append(all, split(one)...)
	}
	return all
}
