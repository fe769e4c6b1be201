// A stock client goes through everything that a server has: `node journey.mjs CLIENT URL KEY` prints one JSON object,
// what each step has come to, by its name. CLIENT is one of those in `clients`.

const [, , which, url, key] = process.argv

const about = { name: 'journey', version: '1.0' }
const abilities = { elicitation: { form: {} }, sampling: {}, roots: { listChanged: true } }
const users = {
  'elicitation/create': request => ({ action: 'accept', content: filled(request.params.requestedSchema) }),
  'sampling/createMessage': request => ({
    role: 'assistant',
    model: 'a-model',
    content: { type: 'text', text: `about ${request.params.messages[0].content.text}` }
  }),
  'roots/list': () => ({ roots: [{ uri: 'file:///one' }, { uri: 'file:///two' }] })
}

// What a user writes into a form: what stands there already, or a word of the right kind.
function filled(schema) {
  const words = { boolean: true, number: 7, integer: 7, array: [] }
  return Object.fromEntries(
    Object.entries(schema.properties).map(([name, each]) => [name, each.default ?? words[each.type] ?? 'Ada'])
  )
}

// One client of a kind: how it is made, connected, and told to answer; `call` is `tools/call` with options.
const clients = {
  'v2 auto': () => second({ mode: 'auto' }),
  'v2 legacy': () => second(undefined),
  'v1': first
}

async function second(versionNegotiation) {
  const { Client, StreamableHTTPClientTransport } = await import('@modelcontextprotocol/client')
  const client = new Client(about, { capabilities: abilities, versionNegotiation })
  for (const [method, answer] of Object.entries(users)) client.setRequestHandler(method, async request => answer(request))
  const transport = new StreamableHTTPClientTransport(new URL(url), shown())
  return {
    client,
    transport,
    era: () => client.getProtocolEra(),
    version: () => client.getNegotiatedProtocolVersion(),
    call: (name, args = {}, options = {}) => client.callTool({ name, arguments: args }, options),
    hear: (method, heard) => client.setNotificationHandler(method, heard)
  }
}

async function first() {
  const { Client } = await import('@modelcontextprotocol/sdk/client/index.js')
  const { StreamableHTTPClientTransport } = await import('@modelcontextprotocol/sdk/client/streamableHttp.js')
  const types = await import('@modelcontextprotocol/sdk/types.js')
  const schemas = {
    'elicitation/create': types.ElicitRequestSchema,
    'sampling/createMessage': types.CreateMessageRequestSchema,
    'roots/list': types.ListRootsRequestSchema,
    'notifications/message': types.LoggingMessageNotificationSchema,
    'notifications/tools/list_changed': types.ToolListChangedNotificationSchema
  }
  const client = new Client(about, { capabilities: abilities })
  for (const [method, answer] of Object.entries(users)) {
    client.setRequestHandler(schemas[method], async request => answer(request))
  }
  const transport = new StreamableHTTPClientTransport(new URL(url), shown())
  return {
    client,
    transport,
    era: () => 'legacy',
    version: () => transport.protocolVersion,
    call: (name, args = {}, options = {}) => client.callTool({ name, arguments: args }, undefined, options),
    hear: (method, heard) => client.setNotificationHandler(schemas[method], heard)
  }
}

function shown() {
  return { requestInit: { headers: { authorization: `Bearer ${key}` } } }
}

const said = result => result.content.map(each => each.text ?? each.type).join(' ')
const asked = (era, legacy, modern) => (era === 'modern' ? modern : legacy)

const steps = {
  async connect(c) {
    return { era: c.era(), version: c.version(), server: c.client.getServerVersion()?.name }
  },
  async lists(c) {
    const { tools } = await c.client.listTools()
    const { resources } = await c.client.listResources()
    const { resourceTemplates } = await c.client.listResourceTemplates()
    const { prompts } = await c.client.listPrompts()
    return {
      tools: tools.map(each => each.name),
      resources: resources.map(each => each.uri),
      templates: resourceTemplates.map(each => each.uriTemplate),
      prompts: prompts.map(each => each.name)
    }
  },
  async call(c) {
    return { echo: said(await c.call('echo', { said: 'grüezi' })), mixed: said(await c.call('test_multiple_content_types')) }
  },
  async many(c) {
    const numbers = Array.from({ length: 20 }, (_, n) => n)
    return Promise.all(numbers.map(async n => said(await c.call('echo', { said: `${n}` }))))
  },
  async failure(c) {
    const result = await c.call('test_error_handling')
    return { isError: result.isError, said: said(result) }
  },
  async refusal(c) {
    const result = await c.call('add', { a: 1, b: 2 })
    return { isError: result.isError, said: said(result) }
  },
  async arguments(c) {
    return outcome(() => c.call('echo', { said: 7 }))
  },
  async progress(c) {
    const reports = []
    const result = await c.call('test_tool_with_progress', {}, { onprogress: each => reports.push(each.progress) })
    return { said: said(result), reports }
  },
  async cancel(c) {
    const stop = new AbortController()
    const name = `linger of ${which}`
    const ended = outcome(() => c.call('linger', { name }, { signal: stop.signal, onprogress: () => stop.abort('enough') }))
    return { gaveUp: 'error' in (await ended), fate: said(await c.call('fate', { name })) }
  },
  async elicitation(c) {
    return said(await c.call(...asked(c.era(), ['test_elicitation', { message: 'Who?' }], ['test_input_required_result_elicitation'])))
  },
  async sampling(c) {
    return said(await c.call(...asked(c.era(), ['test_sampling', { prompt: 'rain' }], ['test_input_required_result_sampling'])))
  },
  async rounds(c) {
    return c.era() === 'modern' ? said(await c.call('test_input_required_result_multi_round')) : null
  },
  async resources(c) {
    const [text] = (await c.client.readResource({ uri: 'test://static-text' })).contents
    const [numbered] = (await c.client.readResource({ uri: 'test://template/7/data' })).contents
    const [binary] = (await c.client.readResource({ uri: 'test://static-binary' })).contents
    return { text: text.text, numbered: JSON.parse(numbered.text).id, binary: binary.blob.length }
  },
  async prompts(c) {
    const { messages } = await c.client.getPrompt({ name: 'test_prompt_with_arguments', arguments: { arg1: 'a', arg2: 'b' } })
    return messages[0].content.text
  },
  async completion(c) {
    const ref = { type: 'ref/prompt', name: 'test_prompt_with_arguments' }
    return (await c.client.complete({ ref, argument: { name: 'arg1', value: 'par' } })).completion.values
  },
  async logging(c) {
    if (c.era() === 'modern') return null
    const lines = []
    await c.client.setLoggingLevel('info')
    c.hear('notifications/message', each => void lines.push(each.params.data))
    await c.call('test_tool_with_logging')
    return [...lines]
  },
  async changes(c) {
    const heard = new Promise(resolve => c.hear('notifications/tools/list_changed', () => resolve('heard')))
    const listening = c.era() === 'modern' ? await c.client.listen({ toolsListChanged: true }) : undefined
    await c.call(...asked(c.era(), ['announce'], ['test_trigger_tool_change']))
    const word = await Promise.race([heard, new Promise(resolve => setTimeout(resolve, 5000, 'silence'))])
    await listening?.close()
    return word
  },
  async ping(c) {
    return c.era() === 'modern' ? null : c.client.ping()
  },
  // The server closes the stream of the call, and the client comes back for its answer.
  async reconnect(c) {
    return c.era() === 'modern' ? null : said(await c.call('test_reconnection'))
  },
  // Ends the session and begins another.
  async again(c) {
    const before = c.transport.sessionId
    await c.transport.terminateSession()
    await c.client.close()
    const other = await clients[which]()
    await other.client.connect(other.transport)
    const result = { echo: said(await other.call('echo', { said: 'again' })), another: other.transport.sessionId !== before }
    await other.client.close()
    return result
  }
}

async function outcome(step) {
  try {
    return { value: await step() }
  } catch (error) {
    return { error: `${error?.name ?? ''}: ${error?.message ?? error}`, code: error?.code ?? null }
  }
}

const found = {}
const client = await clients[which]()
found.connected = await outcome(() => client.client.connect(client.transport))
if (!('error' in found.connected)) {
  for (const [name, step] of Object.entries(steps)) found[name] = await outcome(() => step(client))
}
process.stdout.write(JSON.stringify(found))
process.exit(0)
