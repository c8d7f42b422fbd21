// The Node side of the tests: a server on a unix socket that runs small scripts, one line of JSON each way.
//
//   node peer.mjs <folder with node_modules> <socket>
//
// A connection is a test of its own: what it opens (queues, workers, …) is closed with it. The first line says where
// Redis is: {connection, prefix}. Then {id, code, args} runs code with args as its variables beside `t`, a Peer, and is
// answered by {id, value} or {id, error, name}.
import { once } from 'node:events'
import { createRequire } from 'node:module'
import net from 'node:net'
import readline from 'node:readline'

const [, , modules, socket] = process.argv
const require = createRequire(`${modules}/`)
const AsyncFunction = (async () => {}).constructor

class Peer {
  constructor({ connection, prefix }) {
    this.at = typeof connection === 'string' ? { url: connection } : connection
    this.prefix = prefix
    this.open = new Map()
    this.gates = new Map()
    this.ran = []
    this.seen = []
    this.errors = []
    this.require = require
  }

  get bullmq() {
    return require('bullmq')
  }

  // A cluster is one connection for all, which BullMQ copies where it needs its own.
  get cluster() {
    if (!this.nodes) {
      const { Cluster } = require('ioredis')
      const nodes = new Cluster(this.at.cluster, { redisOptions: { maxRetriesPerRequest: null } })
      nodes.on('error', error => this.errors.push(String(error)))
      this.open.set(nodes, () => nodes.disconnect())
      this.nodes = nodes
    }
    return this.nodes
  }

  connect(more = {}) {
    const Redis = require('ioredis')
    const options = { maxRetriesPerRequest: null, ...more }
    const redis = this.at.url ? new Redis(this.at.url, options) : new Redis({ ...this.at, ...options })
    this.open.set(redis, () => redis.disconnect())
    return redis
  }

  get options() {
    if (this.at.cluster) return { connection: this.cluster, prefix: this.prefix }
    return { connection: { maxRetriesPerRequest: null, ...this.at }, prefix: this.prefix }
  }

  keep(thing, close) {
    thing.on('error', error => this.errors.push(String(error?.message ?? error)))
    this.open.set(thing, close ?? (() => thing.close()))
    return thing
  }

  queue(name = 'mail', more = {}) {
    this.queues ??= new Map()
    const id = name + JSON.stringify(more)
    if (!this.queues.has(id)) {
      this.queues.set(id, this.keep(new this.bullmq.Queue(name, { ...this.options, ...more })))
    }
    return this.queues.get(id)
  }

  flow() {
    this.flows ??= this.keep(new this.bullmq.FlowProducer(this.options))
    return this.flows
  }

  // `code` is the body of the handler; it sees job, token, signal and t.
  async worker(name, code = '', more = {}) {
    const handle = new AsyncFunction('job', 'token', 't', code)
    const run = async (job, token) => {
      this.ran.push({ queue: name, id: job.id, name: job.name, data: job.data, at: Date.now() })
      return handle(job, token, this)
    }
    const worker = this.keep(new this.bullmq.Worker(name, run, { ...this.options, ...more }))
    this.last = worker
    await worker.waitUntilReady()
    return worker
  }

  // Notes every event of a queue in t.seen, as the listener gets it.
  async listen(name, more = {}) {
    const events = this.keep(new this.bullmq.QueueEvents(name, { ...this.options, ...more }))
    const emit = events.emit.bind(events)
    events.emit = (event, ...args) => {
      if (!event.includes(':') && event !== 'error') this.seen.push({ event, ...args[0] })
      return emit(event, ...args)
    }
    await events.waitUntilReady()
    return events
  }

  // Asks Bull Board as its interface does; the board shows the queues named first. Returns {status, body}.
  async ask(queues, method, path, { query = {}, body } = {}) {
    if (!this.board) {
      const { createBullBoard } = require('@bull-board/api')
      const { BullMQAdapter } = require('@bull-board/api/bullMQAdapter')
      this.board = new Board()
      const adapters = queues.map(name => new BullMQAdapter(this.queue(name)))
      const options = { uiBasePath: modules, validateResponses: true }
      createBullBoard({ queues: adapters, serverAdapter: this.board, options })
    }
    return this.board.ask(method, path, query, body)
  }

  // Handlers wait at gates; tests open them.
  gate(name) {
    if (!this.gates.has(name)) {
      let open
      const passed = new Promise(resolve => (open = resolve))
      this.gates.set(name, { passed, open })
    }
    return this.gates.get(name)
  }

  async close() {
    this.closing = true
    for (const gate of this.gates.values()) gate.open()
    const closed = [...this.open.values()].reverse().map(close => Promise.resolve().then(close))
    const patience = new Promise(resolve => setTimeout(resolve, 5000).unref())
    await Promise.race([Promise.allSettled(closed), patience])
  }
}

// The least that Bull Board needs of a web server.
class Board {
  setQueues(queues) {
    this.queues = queues
    return this
  }

  setApiRoutes(routes) {
    this.routes = routes.map(({ method, route, handler }) => {
      const pattern = new RegExp(`^${route.replace(/:(\w+)/g, '(?<$1>[^/]+)')}$`)
      return { method, pattern, handler }
    })
    return this
  }

  setErrorHandler(handler) {
    this.onError = handler
    return this
  }

  setViewsPath() {
    return this
  }

  setStaticPath() {
    return this
  }

  setEntryRoute() {
    return this
  }

  setUIConfig() {
    return this
  }

  async ask(method, path, query, body) {
    for (const route of this.routes) {
      const found = route.method === method && route.pattern.exec(path)
      if (!found) continue
      const params = Object.fromEntries(Object.entries(found.groups ?? {}).map(([k, v]) => [k, decodeURIComponent(v)]))
      try {
        const answer = await route.handler({ queues: this.queues, query, params, body, headers: {} })
        return { status: answer.status ?? 200, body: answer.body ?? null }
      } catch (error) {
        return this.onError(error)
      }
    }
    throw new Error(`no route ${method} ${path}`)
  }
}

async function serve(stream) {
  const lines = readline.createInterface({ input: stream, crlfDelay: Infinity })
  let peer
  const answer = message => stream.writable && stream.write(JSON.stringify(message) + '\n')
  const run = async ({ id, code, args = {} }) => {
    try {
      const value = await new AsyncFunction('t', ...Object.keys(args), code)(peer, ...Object.values(args))
      answer({ id, value: value === undefined ? null : value })
    } catch (error) {
      answer({ id, error: String(error?.message ?? error), name: error?.name ?? 'Error', code: error?.code })
    }
  }
  lines.on('line', line => {
    const message = JSON.parse(line)
    if (peer) run(message)
    else {
      peer = new Peer(message)
      answer({ id: 0, value: require('bullmq/package.json').version })
    }
  })
  await once(lines, 'close')
  await peer?.close()
  stream.end()
}

// What a test's own worker leaves unhandled must not end the process of all others.
process.on('unhandledRejection', error => console.error('unhandled', error))
net.createServer({ allowHalfOpen: true }, stream => {
  stream.on('error', () => {})
  serve(stream)
}).listen(socket)
