package mx

import (
	"context"
	"time"

	"github.com/miekg/dns"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

var queryTime = func() metric.Float64Histogram {
	h, err := otel.Meter("postrider/resolver").Float64Histogram("postrider.resolver.dns.duration",
		metric.WithUnit("s"), metric.WithDescription("Time of a DNS question until its answer, all tries included; questions answered from memory are not counted."))
	if err != nil {
		panic(err) // the name above is wrong
	}
	return h
}()

// observe counts one question that went out to the name servers.
func observe(qtype uint16, v verdict, d time.Duration) {
	queryTime.Record(context.Background(), d.Seconds(), metric.WithAttributes(
		attribute.String("type", dns.TypeToString[qtype]), attribute.String("verdict", v.String())))
}

func (v verdict) String() string {
	return [...]string{unknown: "unknown", found: "found", noData: "no data", noDomain: "no domain", alias: "alias"}[v]
}
