// Signs a user up from Node.js: node producer.mjs ada@example.org Ada
//
// What a NestJS service does with an injected queue, without NestJS around it:
//
//   constructor(@InjectQueue('email') private readonly emails: Queue) {}
//   signUp(email: string, name: string) { return this.emails.add('welcome', { email, name }) }
import { Queue, QueueEvents } from 'bullmq'

const url = process.env.QUEUE_URL ?? 'redis://localhost:6379/0'
const at = url.startsWith('unix:') ? { path: new URL(url).pathname } : { url }
const options = { connection: { ...at, maxRetriesPerRequest: null }, prefix: process.env.WORKERS_QUEUE__PREFIX ?? 'bull' }

const [email = 'ada@example.org', name = 'Ada'] = process.argv.slice(2)
const emails = new Queue('email', options)
const events = new QueueEvents('email', options)
try {
  const job = await emails.add('welcome', { email, name }, { attempts: 3, backoff: { type: 'exponential', delay: 1000 } })
  console.log(`welcome #${job.id} added`)
  const sent = await job.waitUntilFinished(events, 30_000)
  console.log(`sent as ${sent.message_id}`)
} finally {
  await events.close()
  await emails.close()
}
