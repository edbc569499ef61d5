CREATE TABLE counters ( name VARCHAR(64) NOT NULL, label VARCHAR(64) NOT NULL, value FLOAT NOT NULL, PRIMARY KEY (name, label) );
CREATE TABLE jobs ( id VARCHAR(64) NOT NULL, kind VARCHAR(16) NOT NULL, state VARCHAR(16) NOT NULL, attempt INTEGER NOT NULL, owner VARCHAR(64), lease_expires_at TIMESTAMP WITHOUT TIME ZONE, cancel_requested BOOLEAN NOT NULL, created_at TIMESTAMP WITHOUT TIME ZONE NOT NULL, started_at TIMESTAMP WITHOUT TIME ZONE, finished_at TIMESTAMP WITHOUT TIME ZONE, request JSON NOT NULL, progress JSON, result JSON, error JSON, idempotency_key VARCHAR(255), request_hash VARCHAR(64) NOT NULL, PRIMARY KEY (id), UNIQUE (idempotency_key) );
CREATE INDEX jobs_by_age ON jobs (created_at, id);
CREATE INDEX jobs_by_state ON jobs (state, created_at, id);
CREATE TABLE runners ( owner VARCHAR(64) NOT NULL, seen_at TIMESTAMP WITHOUT TIME ZONE NOT NULL, PRIMARY KEY (owner) );
CREATE TABLE events ( id SERIAL NOT NULL, job_id VARCHAR(64) NOT NULL, event VARCHAR(16) NOT NULL, data JSON NOT NULL, PRIMARY KEY (id), FOREIGN KEY(job_id) REFERENCES jobs (id) ON DELETE CASCADE );
CREATE INDEX events_by_job ON events (job_id, id);
