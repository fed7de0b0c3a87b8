package boot

import (
	"encoding"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"strconv"
	"strings"

	"github.com/kelseyhightower/envconfig"
)

const prefix = "POSTRIDER_"

// ownConfig is what every process reads.
type ownConfig struct {
	LogLevel      slog.Level `envconfig:"LOG_LEVEL" default:"info" desc:"Least level of log lines: debug, info, warn or error."`
	MetricsListen string     `envconfig:"METRICS_LISTEN" default:"127.0.0.1:0" desc:"Address of /livez, /readyz and /metrics; port 0 is any free one (it is logged), empty is none. In a container: :9464."`
}

// ConfigError lists everything that is wrong with the configuration.
type ConfigError struct{ Problems []string }

// Error returns one line for each problem.
func (e *ConfigError) Error() string {
	return fmt.Sprintf("%d in the configuration:\n  %s", len(e.Problems), strings.Join(e.Problems, "\n  "))
}

// Variable is one environment variable of a configuration struct.
type Variable struct {
	Name     string // with the prefix
	Default  string
	Doc      string
	Type     string // what a value looks like
	Required bool
	Secret   bool // its value is never shown; it is also read from the file that Name_FILE names

	field reflect.Value
	owner reflect.Value // the struct that has the field
}

// Defaults replaces the defaults of variables, by their full names, for every
// later Config: postrider dev works without any configuration.
func (p *Process) Defaults(values map[string]string) {
	if p.defaults == nil {
		p.defaults = map[string]string{}
	}
	for name, value := range values {
		p.defaults[name] = value
	}
}

// SpanFile makes the next Config record every trace and write its spans to
// the file too.
func (p *Process) SpanFile(name string) { p.spanFile, p.sampling = name, 1 }

// Config fills the structs (given as pointers) from the environment, then
// starts the logs, the telemetry and the HTTP server of the process. The
// struct tags are those of envconfig, `envconfig:"NAME" default:"..."
// required:"true"`, and ours: `desc:"..." secret:"true"`; the prefix
// POSTRIDER_ goes before each name. A nested struct belongs to the struct
// around it. A variable that is set to nothing has the zero value; that is
// not enough for a required one. NAME_FILE gives the value in a file. A
// struct with the method Validate() error is checked.
//
// The error is a *ConfigError that lists all that is wrong, in all structs.
func (p *Process) Config(cfgs ...any) error {
	own := &ownConfig{}
	cfgs = append(cfgs, own)
	if p.print {
		if err := p.printTable(cfgs); err != nil {
			return err
		}
		return errPrinted
	}
	shown, err := p.load(cfgs...)
	if err != nil {
		return err
	}
	if !p.ran {
		p.ran = true
		if err := p.begin(own); err != nil {
			return err
		}
	}
	slog.Debug("configuration", "variables", shown)
	return nil
}

// load fills the structs and checks them. It returns what may be shown of
// each variable.
func (p *Process) load(cfgs ...any) (shown []string, err error) {
	var problems []string
	for _, cfg := range cfgs {
		vars, err := variables(cfg)
		if err != nil {
			return nil, err
		}
		broken := map[any]bool{}
		for _, v := range vars {
			value, err := p.fill(v)
			if err != nil {
				problems = append(problems, err.Error())
				broken[v.owner.Addr().Interface()] = true
				continue
			}
			shown = append(shown, v.Name+"="+value)
		}
		more, _ := validate(reflect.ValueOf(cfg), broken)
		problems = append(problems, more...)
	}
	if len(problems) > 0 {
		return nil, &ConfigError{unique(problems)}
	}
	return shown, nil
}

// Load fills the structs as Process.Config does, from the environment and
// the given defaults, and starts nothing: for commands that run no service.
func Load(defaults map[string]string, cfgs ...any) error {
	p := &Process{lookup: os.LookupEnv, defaults: defaults}
	_, err := p.load(cfgs...)
	return err
}

// fill sets the field of a variable and returns how its value may be shown.
func (p *Process) fill(v Variable) (shown string, err error) {
	value, source, err := p.value(v)
	if err != nil {
		return "", err
	}
	if value == "" {
		if v.Required {
			return "", fmt.Errorf("%s is required and not set: %s", v.Name, v.Doc)
		}
		v.field.SetZero()
		return "", nil
	}
	if err := decode(v, value); err != nil {
		if v.Secret {
			return "", fmt.Errorf("%s does not hold %s", source, v.Type)
		}
		return "", fmt.Errorf("%s is %q, want %s: %w", source, value, v.Type, err)
	}
	if v.Secret {
		return "(secret)", nil
	}
	return value, nil
}

// value returns the text of a variable, and where it comes from: the
// variable, the file that NAME_FILE names, or the default.
func (p *Process) value(v Variable) (value, source string, err error) {
	value, set := p.lookup(v.Name)
	file, fromFile := p.lookup(v.Name + "_FILE")
	switch {
	case set && fromFile && value != "":
		return "", "", fmt.Errorf("%s and %s_FILE are both set", v.Name, v.Name)
	case fromFile && file != "":
		text, err := os.ReadFile(file)
		if err != nil {
			return "", "", fmt.Errorf("%s_FILE: %w", v.Name, err)
		}
		return strings.TrimRight(string(text), "\r\n"), v.Name + "_FILE", nil
	case set:
		return strings.TrimSpace(value), v.Name, nil
	}
	if d, ok := p.defaults[v.Name]; ok {
		return d, v.Name, nil
	}
	return v.Default, v.Name, nil
}

// decode lets envconfig turn the text into the field. It does so through a
// struct of one field with the text as its default and a name that nobody
// can set: envconfig on a whole struct stops at the first error, lets an empty
// variable count as set, and also reads names without the prefix.
func decode(v Variable, value string) error {
	if v.field.Kind() == reflect.Slice {
		value = strings.ReplaceAll(value, ", ", ",")
	}
	one := reflect.StructOf([]reflect.StructField{{
		Name: "Value",
		Type: v.field.Type(),
		Tag:  reflect.StructTag(`envconfig:"=" default:` + strconv.Quote(value)),
	}})
	ptr := reflect.New(one)
	if err := envconfig.Process("", ptr.Interface()); err != nil {
		var parse *envconfig.ParseError
		if errors.As(err, &parse) {
			return parse.Err
		}
		return err
	}
	v.field.Set(ptr.Elem().Field(0))
	return nil
}

// variables lists the variables of a struct, in the order of its fields.
func variables(cfg any) ([]Variable, error) {
	v := reflect.ValueOf(cfg)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
		return nil, fmt.Errorf("configuration %T is not a pointer to a struct", cfg)
	}
	return appendVariables(nil, v.Elem())
}

func appendVariables(vars []Variable, s reflect.Value) ([]Variable, error) {
	for i := range s.NumField() {
		f, t := s.Field(i), s.Type().Field(i)
		name := t.Tag.Get("envconfig")
		if !t.IsExported() || name == "-" || t.Tag.Get("ignored") == "true" {
			continue
		}
		if f.Kind() == reflect.Struct && !decodes(f) {
			var err error
			if vars, err = appendVariables(vars, f); err != nil {
				return nil, err
			}
			continue
		}
		if name == "" {
			return nil, fmt.Errorf("configuration field %s.%s has no envconfig tag", s.Type(), t.Name)
		}
		vars = append(vars, Variable{
			Name:     prefix + name,
			Default:  t.Tag.Get("default"),
			Doc:      t.Tag.Get("desc"),
			Type:     describe(f.Type()),
			Required: t.Tag.Get("required") == "true",
			Secret:   t.Tag.Get("secret") == "true",
			field:    f,
			owner:    s,
		})
	}
	return vars, nil
}

// decodes reports whether the struct reads its value from one text.
func decodes(f reflect.Value) bool {
	switch f.Addr().Interface().(type) {
	case encoding.TextUnmarshaler, envconfig.Decoder, envconfig.Setter:
		return true
	}
	return false
}

// validate calls Validate on the structs inside, then on the struct itself;
// not on those with a broken field in them, whose zero values would be
// complained of a second time.
func validate(v reflect.Value, broken map[any]bool) (problems []string, whole bool) {
	whole = !broken[v.Interface()]
	for i := range v.Elem().NumField() {
		f := v.Elem().Field(i)
		if f.Kind() != reflect.Struct || !v.Elem().Type().Field(i).IsExported() {
			continue
		}
		inside, ok := validate(f.Addr(), broken)
		problems, whole = append(problems, inside...), whole && ok
	}
	if c, ok := v.Interface().(interface{ Validate() error }); ok && whole {
		if err := c.Validate(); err != nil {
			problems = append(problems, strings.Split(err.Error(), "\n")...) // errors.Join: one line each
		}
	}
	return problems, whole
}

// unique drops repeated problems: several structs may share a variable.
func unique(problems []string) []string {
	seen := map[string]bool{}
	var once []string
	for _, p := range problems {
		if !seen[p] {
			seen[p] = true
			once = append(once, p)
		}
	}
	return once
}
