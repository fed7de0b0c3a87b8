package httpd

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

const path = "/v1/messages"

// document is the description of the interface, and the schema that requests
// are checked against: they are the same.
type document struct {
	json     []byte
	registry huma.Registry
	message  *huma.Schema
}

// describe makes the OpenAPI 3.1 document from the types. The operation is
// described by hand, as its handler must stream: huma's own handlers read
// whole bodies.
func describe() (*document, error) {
	registry := huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer)
	schema := func(v any) *huma.Schema { return registry.Schema(reflect.TypeOf(v), true, "") }
	problem := func(description string, headers map[string]*huma.Param) *huma.Response {
		return &huma.Response{Description: description, Headers: headers,
			Content: map[string]*huma.MediaType{"application/problem+json": {Schema: schema(Problem{})}}}
	}
	retry := map[string]*huma.Param{"Retry-After": {Description: "Seconds to wait.", Schema: &huma.Schema{Type: huma.TypeInteger}}}
	text := &huma.Schema{Type: huma.TypeString}
	query := func(name, description string, schema *huma.Schema) *huma.Param {
		return &huma.Param{Name: name, In: "query", Description: "For message/rfc822. " + description, Schema: schema}
	}
	options := registry.Schema(reflect.TypeFor[Options](), false, "").Properties
	operation := &huma.Operation{
		OperationID: "submitMessage",
		Summary:     "Submit a message",
		Description: "The 202 comes after the message is durable. application/json composes a message; message/rfc822 is a whole one, " +
			"with CR LF at the end of each line, lines of at most 998 octets, and its envelope in the query: it is passed on as it is, with a trace field, " +
			"Date and Message-ID added where they were missing, and Bcc removed. Requests in JSON have at most 8 MiB, messages 25 MiB, and 1000 recipients; both bounds can be configured.",
		Security: []map[string][]string{{"apiKey": {}}},
		Parameters: []*huma.Param{
			{Name: "Idempotency-Key", In: "header", Description: "Printable ASCII without spaces. The same key of the tenant within 24 hours returns the first answer again, and accepts nothing; with another request it is refused.",
				Schema: &huma.Schema{Type: huma.TypeString, MinLength: ptr(1), MaxLength: ptr(maxKey)}},
			{Name: "traceparent", In: "header", Description: "W3C trace context: the trace of the message becomes a part of this one.", Schema: text},
			query("to", "Recipient; once for each.", &huma.Schema{Type: huma.TypeArray, Items: text, MaxItems: ptr(1000)}),
			query("reverse_path", "Address that reports go to; empty for the null reverse-path. Default: the address in Sender, else the one in From.", text),
			query("notify", "As in JSON, several with commas.", text),
			query("ret", options["ret"].Description, options["ret"]),
			query("envid", options["envid"].Description, options["envid"]),
			query("campaign", options["campaign"].Description, options["campaign"]),
			query("priority", options["priority"].Description, options["priority"]),
			query("send_at", options["send_at"].Description, options["send_at"]),
			query("expires_at", options["expires_at"].Description, options["expires_at"]),
		},
		RequestBody: &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{
			jsonType: {Schema: schema(Message{})},
			rawType:  {Schema: &huma.Schema{Type: huma.TypeString, Format: "binary"}},
		}},
		Responses: map[string]*huma.Response{
			"202": {Description: "The message is in the queue, for good.",
				Headers: map[string]*huma.Param{"Idempotent-Replayed": {Description: "true when this is the answer to an earlier request with the same Idempotency-Key.", Schema: &huma.Schema{Type: huma.TypeBoolean}}},
				Content: map[string]*huma.MediaType{jsonType: {Schema: schema(Receipt{})}}},
			"400": problem("The request is malformed; errors say where.", nil),
			"401": problem("No API key, or one that is not valid.", nil),
			"403": problem("The credential may not send from this address.", nil),
			"408": problem("The request came too slowly.", nil),
			"409": problem("A request with this Idempotency-Key is under way.", retry),
			"413": problem("The request or the message is too large.", nil),
			"415": problem("Neither application/json nor message/rfc822.", nil),
			"422": problem("The Idempotency-Key was used for another request.", nil),
			"429": problem("Too much at this moment, or a quota is used up.", retry),
			"503": problem("The message cannot be stored now.", retry),
		},
	}
	api := &huma.OpenAPI{
		OpenAPI: "3.1.0",
		Info: &huma.Info{Title: "postrider", Version: "1",
			Description: "Submission of mail by HTTP. Errors are RFC 9457 problems. Requests that got 409, 429, 503 or no answer can be sent again; with an Idempotency-Key that never makes a second message."},
		Components: &huma.Components{Schemas: registry,
			SecuritySchemes: map[string]*huma.SecurityScheme{"apiKey": {Type: "http", Scheme: "bearer", Description: "An API key (pr_...): postrider credential add makes one."}}},
		Paths: map[string]*huma.PathItem{path: {Post: operation}},
	}
	doc, err := json.MarshalIndent(api, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("openapi: %w", err)
	}
	return &document{json: append(doc, '\n'), registry: registry, message: schema(Message{})}, nil
}

func ptr(n int) *int { return &n }

// pointer makes a JSON Pointer (RFC 6901 §6) of the "to.address" of encoding/json.
func pointer(location string) string {
	if location == "" {
		return "#"
	}
	return "#/" + strings.NewReplacer("~", "~0", "/", "~1", "[", "/", "]", "", ".", "/").Replace(location)
}
