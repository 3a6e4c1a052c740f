# Two commands for a fresh machine with rustup, gcc and make; `make help` lists the rest.

export PATH := $(PATH):/usr/sbin:/sbin

.PHONY: run test simulate power soak fuzz fleet attacks bench check package help

run: ## Build and start the edge on the sample configuration
	@.ci/need cc cmake
	cargo run --locked --release -- run --config config/pixelgate.toml

test: ## Pass the tests
	@.ci/need cc cmake nginx chromium chromedriver
	cargo test --locked $(if $(FEATURES),--features $(FEATURES))

simulate: ## Simulate delivery, with ten thousand seeds
	@.ci/need cc cmake
	PIXELGATE_TEST_SEEDS=$(or $(SEEDS),10000) PIXELGATE_TEST_SEED_FIRST=$(or $(FIRST),0) \
	    cargo test --locked --test unit delivery_sim $(if $(FEATURES),--features $(FEATURES)) -- --nocapture

power: ## Cut the power of a spool a thousand times (CUTS=)
	@.ci/need cc cmake
	PIXELGATE_POWER_CUTS=$(or $(CUTS),1000) \
	    cargo test --locked --test unit spool_power -- --nocapture --test-threads 1

soak: ## Run the edge under load and faults for SECONDS (600)
	@.ci/need cc cmake
	PIXELGATE_SOAK_SECONDS=$(or $(SECONDS),600) \
	    cargo test --locked --test edge soak -- --ignored --nocapture

fleet: ## Send ten thousand odd paths through the edge to real origins
	@.ci/need cc cmake && .ci/need-fleet
	PIXELGATE_FLEET_TARGETS=$(or $(TARGETS),10000) PIXELGATE_FLEET_SEED=$(or $(SEED),1) \
	    cargo test --locked --test security fleet -- --nocapture

attacks: ## Measure what attacks cost, next to nginx (docs/security.md)
	@.ci/need cc cmake nginx
	cargo test --locked --release --test security what_attacks_cost -- --ignored --nocapture

bench: ## Measure next to nginx and the other yardsticks (README, "Figures")
	@.ci/need cc cmake nginx valgrind
	cargo bench --locked

fuzz: ## Fuzz the judge, the path guard and the server for SECONDS (600)
	@.ci/need cc c++ cmake
	.ci/fuzz $(or $(SECONDS),600) judge path connection

check: ## What CI does
	@.ci/run

package: ## Build a .deb, a tarball and an SBOM, and use them in a fresh Debian
	@.ci/package && .ci/package-test

help:
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'
